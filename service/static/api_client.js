// What the page asks of the service itself: which models there are, and the key that it may want.

import { problemOf } from "./segment_api.js";

const KEPT = "maskserve key"; // in this tab's storage, which goes with the tab

export const key = {
  get: () => sessionStorage.getItem(KEPT) ?? "",
  set: (text) => sessionStorage.setItem(KEPT, text),
};

// The folder that this page lies in, also where a proxy has put it below another path.
export const here = new URL(".", document.baseURI).href;

// -> {models} or {problem}
export async function models() {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  try {
    const answer = await fetch(new URL("v1/models", here), { headers, cache: "no-store" });
    return answer.ok ? { models: await answer.json() } : { problem: await problemOf(answer) };
  } catch {
    return { problem: { status: 0, title: "No answer came", detail: "The service may be down, or the connection to it was lost." } };
  }
}

// What a person can do about a problem, beyond what the service says of it.
export function advice({ status }) {
  if (status === 0) return "Look whether the service runs, and try again.";
  if (status === 408 || status === 504) return "Try again, or send a smaller picture.";
  if (status === 500 || status === 502) return "Try again; if it stays so, whoever runs the service finds the reason in its log.";
  return "";
}

export const passes = ({ status }) => status === 429 || status === 503;
export const retryable = ({ status }) => status === 0 || status >= 500 || [408, 429].includes(status);
// Another time, key or model makes nothing better: it is the picture.
export const ofPicture = (met) => !retryable(met) && ![401, 404].includes(met.status);
