// Asks the service for the classes of a picture, and reads its answer. Runs in the worker: an answer of some megabytes
// would hold up the page.

import { readPng } from "./png.js";

// The classes, their labels and how sure the network is of each, from one inference.
const ALL = { format: "json", masks: "png", confidence: "true" };
// The picture as the service reads it, for those that browsers do not (TIFF) or that they turn another way.
const BARE = { format: "overlay", alpha: "0" };

// What the service, whatever stands before it, or the disk refused; `problem` has {status, title, detail, request, after}.
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

// asked: {file: Blob, at: URL of the service, model: name, key: text or "", signal: AbortSignal} ->
// {facts: the JSON less its pictures, labels, confidence: Uint8Array of height x width, mask: PNG Blob, json: Blob, model,
//  stages: [name, ms], trip: ms from the first byte out to the last one in}. Throws: Refused; AbortError; TypeError for no answer.
export async function label(asked) {
  const began = performance.now();
  const answer = await post(asked, ALL);
  const json = await answer.blob();
  const trip = performance.now() - began;
  const { png, confidence, ...facts } = JSON.parse(await json.text());
  const mask = unpacked(png);
  const [labels, sure] = await Promise.all([readPng(mask), readPng(unpacked(confidence))]);
  return {
    facts, json, trip, labels: labels.samples, confidence: sure.samples,
    mask: new Blob([mask], { type: "image/png" }),
    model: answer.headers.get("X-Model"),
    stages: stages(answer.headers.get("Server-Timing") ?? ""),
  };
}

// The picture as the service sees it, a JPEG Blob. It costs an inference: there is no other way to ask for it.
export async function bare(asked) {
  return (await post(asked, BARE)).blob();
}

async function post({ file, at, model, key, signal }, wishes) {
  const address = new URL("v1/segment", at);
  address.search = new URLSearchParams({ ...wishes, model });
  const headers = { "Content-Type": "application/octet-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(address, { method: "POST", body: file, headers, signal });
  if (!answer.ok) throw new Refused(await problemOf(answer));
  return answer;
}

// A refusal by the service is problem+json; one by a proxy before it may be anything.
export async function problemOf(answer) {
  const told = await answer.json().catch(() => ({}));
  return {
    status: answer.status,
    title: told.title ?? `The answer was ${answer.status} ${answer.statusText}`,
    detail: told.detail ?? "It came from something between this page and the service, and says no more.",
    request: told.request_id ?? answer.headers.get("X-Request-ID"),
    after: Number(answer.headers.get("Retry-After")) || null, // seconds
  };
}

function unpacked(base64) {
  return Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// Server-Timing (W3C): "read;dur=0.41, decode;dur=3.02"
function stages(header) {
  return [...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, spent]) => [name, Number(spent)]);
}
