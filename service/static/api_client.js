// Lists the models, stores the API key and classifies problems.

import { parseProblem } from "./segment_api.js";

const STORAGE_KEY = "maskserve key"; // in sessionStorage, which is deleted with the tab

export const apiKey = {
  get: () => sessionStorage.getItem(STORAGE_KEY) ?? "",
  set: (text) => sessionStorage.setItem(STORAGE_KEY, text),
};

// The page's folder, so that a proxy may serve it below another path.
export const baseUrl = new URL(".", document.baseURI).href;

// -> {models} or {problem}
export async function fetchModels() {
  const headers = apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {};
  try {
    const response = await fetch(new URL("v1/models", baseUrl), { headers, cache: "no-store" });
    return response.ok ? { models: await response.json() } : { problem: await parseProblem(response) };
  } catch {
    return { problem: { status: 0, title: "No response from the service", detail: "The service is down or the connection was lost." } };
  }
}

// -> what the user can do, in addition to the problem's detail; "" for nothing
export function advice({ status }) {
  if (status === 0) return "Check that the service is running, then try again.";
  if (status === 408 || status === 504) return "Try again, or send a smaller image.";
  if (status === 500 || status === 502) return "Try again. If it persists, the operator finds the reason in the service log.";
  return "";
}

export const isTransient = ({ status }) => status === 429 || status === 503;
export const isRetryable = ({ status }) => status === 0 || status >= 500 || [408, 429].includes(status);
// Caused by the image itself: a retry, another key or another model does not help.
export const isImageError = (problem) => !isRetryable(problem) && ![401, 404].includes(problem.status);
