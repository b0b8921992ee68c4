// Client of the service's jobs: requests that may take longer than its time-out.

import { ApiError, authorization, parseProblem, postFile } from "./segment_api.js";

const FIRST_WAIT = 100, LONGEST_WAIT = 2000; // milliseconds between two questions for the result

// As postFile -> {blob, headers} of the result. A service without jobs answers the request itself. A job is deleted once its result
// is here, and stopped if the signal is aborted.
export async function postJob(request, params) {
  const response = await postFile(request, params, { Prefer: "respond-async" });
  if (response.status !== 202) return { blob: await response.blob(), headers: response.headers };
  const { baseUrl, apiKey, signal } = request, headers = authorization(apiKey);
  const url = new URL(`v1/jobs/${response.headers.get("Location").split("/").at(-1)}`, baseUrl); // a proxy may serve another path
  try {
    for (let wait = FIRST_WAIT; ; wait = Math.min(LONGEST_WAIT, 1.5 * wait)) {
      const result = await fetch(url, { headers, signal, cache: "no-store" });
      if (!result.ok) throw new ApiError(await parseProblem(result));
      if (result.status !== 202) return { blob: await result.blob(), headers: result.headers };
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  } finally {
    fetch(url, { method: "DELETE", headers }).catch(() => {});
  }
}
