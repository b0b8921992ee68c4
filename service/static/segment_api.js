// Client of /v1/segment. Runs in the workers, because parsing a response of some megabytes would block the page.

import { readPng } from "./png.js";

// Class statistics, mask and confidence from one inference.
const SEGMENT_PARAMS = { format: "json", masks: "png", confidence: "true" };
// The image as the service decodes it, where the browser cannot (TIFF, arrays) or applies another rotation.
const IMAGE_PARAMS = { format: "overlay", alpha: "0" };

// An error response, or an unreadable file. problem: {status, title, detail, requestId, retryAfter}
export class ApiError extends Error {
  constructor(problem) {
    super(problem.detail);
    this.problem = problem;
  }
}

export const fileProblem = {
  status: null,
  title: "The file cannot be read",
  detail: "It may be a folder, or was changed or deleted; choose it again.",
};

// fetch throws a TypeError without details for every network error.
export function networkProblem(error) {
  const network = error instanceof TypeError;
  return {
    status: 0,
    title: network ? "No response from the service" : "The response cannot be read",
    detail: `${network ? "The service is down or the connection was lost" : error.message}. Your file is still here.`,
  };
}

// request: {file: Blob, baseUrl, model: name, apiKey: text or "", signal: AbortSignal} ->
// {stats: the JSON without its images, labels, confidence: Uint8Array of height x width, mask: PNG Blob, json: Blob, model,
//  stages: [name, ms] pairs, totalMs: from sending to the last byte received}.
// Throws: ApiError; AbortError; TypeError for a network error.
export async function segment(request) {
  const start = performance.now();
  const response = await postFile(request, SEGMENT_PARAMS);
  const json = await response.blob();
  const totalMs = performance.now() - start;
  const { png, confidence, ...stats } = JSON.parse(await json.text());
  const mask = decodeBase64(png);
  const [labelPng, confidencePng] = await Promise.all([readPng(mask), readPng(decodeBase64(confidence))]);
  return {
    stats, json, totalMs, labels: labelPng.samples, confidence: confidencePng.samples,
    mask: new Blob([mask], { type: "image/png" }),
    model: response.headers.get("X-Model"),
    stages: parseServerTiming(response.headers.get("Server-Timing") ?? ""),
  };
}

// -> the image as the service decodes it, a JPEG Blob. Costs an inference, because no other route returns it.
export async function fetchDecodedImage(request) {
  const { bands } = request; // names of three channels, or "" for those that the service chooses
  return (await postFile(request, bands ? { ...IMAGE_PARAMS, bands } : IMAGE_PARAMS)).blob();
}

export const authorization = (apiKey) => (apiKey ? { Authorization: `Bearer ${apiKey}` } : {});

export async function postFile({ file, baseUrl, model, apiKey, signal }, params, furtherHeaders = {}) {
  const url = new URL("v1/segment", baseUrl);
  url.search = new URLSearchParams({ ...params, model });
  const headers = { "Content-Type": "application/octet-stream", ...authorization(apiKey), ...furtherHeaders };
  const response = await fetch(url, { method: "POST", body: file, headers, signal });
  if (!response.ok) throw new ApiError(await parseProblem(response));
  return response;
}

// The service sends errors as application/problem+json (RFC 9457); a proxy may send anything.
export async function parseProblem(response) {
  const body = await response.json().catch(() => ({}));
  return {
    status: response.status,
    title: body.title ?? `HTTP ${response.status} ${response.statusText}`,
    detail: body.detail ?? "The response has no details. A proxy may have sent it.",
    requestId: body.request_id ?? response.headers.get("X-Request-ID"),
    retryAfter: Number(response.headers.get("Retry-After")) || null, // seconds
  };
}

function decodeBase64(text) {
  return Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// Server-Timing (W3C): "read;dur=0.41, decode;dur=3.02"
export function parseServerTiming(header) {
  return [...header.matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]);
}
