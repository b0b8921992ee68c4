// Does the slow work: decoding, requests, coloring and drawing.
// Messages in both directions are {type, ...data}.

import * as renderer from "./renderer.js";
import { ApiError, fetchDecodedImage, fileProblem, networkProblem, segment } from "./segment_api.js";

const files = new Map(); // image number -> promise of a Blob: of the image on the screen and of the newest one
let newest = 0; // number of the image that was opened or requested last
let activeRequest = null; // AbortController
let shown = { number: 0, name: "", width: 0, height: 0 }; // the image on the screen
let displaying = null; // promise that settles when the newest image is drawn, or cannot be
let mask = null; // {labels, confidence, width, height, png, json}

const post = (type, data = {}) => postMessage({ type, ...data });

const handlers = {
  canvas: ({ canvas }) => renderer.setCanvas(canvas),
  view: ({ view }) => renderer.setView(view),
  overlay: ({ table, minConfidence }) => mask && renderer.updateOverlay(mask, table, minConfidence),
  stop: () => activeRequest?.abort(),
  readout: ({ x, y }) => {
    if (!mask || x < 0 || y < 0 || x >= mask.width || y >= mask.height) return;
    const index = y * mask.width + x;
    post("readout", { x, y, label: mask.labels[index], confidence: mask.confidence[index] / 255 });
  },

  show({ number, name, file }) {
    newest = number;
    activeRequest?.abort();
    for (const old of files.keys()) if (old !== shown.number) files.delete(old);
    // Copy the bytes: the file on disk may change or be deleted before the next request.
    const bytes = file.arrayBuffer().then((buffer) => new Blob([buffer]));
    files.set(number, bytes);
    displaying = bytes.then((blob) => displayImage({ number, name }, blob)).catch(() => {}); // `segment` reports errors
  },

  async segment(request) {
    const { number, name, bands } = request;
    newest = number;
    activeRequest?.abort();
    const controller = (activeRequest = new AbortController());
    const { signal } = controller;
    try {
      const upload = { ...request, file: await files.get(number).catch(throwUnreadable), signal };
      const result = await segment(upload);
      const { width, height } = result.stats;
      await displaying;
      if (shown.number !== number || shown.width !== width || shown.height !== height || (shown.bands ?? "") !== bands) {
        await displayImage({ number, name, bands }, await fetchDecodedImage(upload));
      }
      if (signal.aborted) return;
      mask = { width, height, labels: result.labels, confidence: result.confidence, png: result.mask, json: result.json };
      const { stats, model, stages, totalMs } = result;
      post("result", { number, stats, model, stages, totalMs });
    } catch (error) {
      await displaying; // the page needs the image on the screen before the problem
      if (signal.aborted) return;
      post("problem", { number, problem: error instanceof ApiError ? error.problem : networkProblem(error) });
    } finally {
      if (activeRequest === controller) activeRequest = null;
    }
  },

  async save({ what, opacity }) {
    if (!mask) return;
    const blob = what === "overlay" ? await renderer.exportOverlay(opacity) : what === "mask" ? mask.png : mask.json;
    post("save", { what, blob });
  },
};

// If the browser cannot decode the image, the previous one stays on the screen.
async function displayImage(image, file) {
  const size = await renderer.showImage(file, () => image.number === newest);
  if (!size) return;
  mask = null;
  shown = { ...image, ...size };
  post("show", shown);
}

function throwUnreadable() {
  throw new ApiError(fileProblem);
}

onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    post("problem", { number: shown.number, problem: networkProblem(error) });
  }
};
