// Segments a volume and draws three planes of it. Messages are those of worker.js, {type, ...data} in both directions.
//
// The browser reads a NIfTI itself and shows it before the answer is there. Of other files it has only the answer, a NIfTI of labels.

import { postJob } from "./job_api.js";
import { readNifti } from "./nifti.js";
import { readNpz } from "./npz.js";
import { ApiError, fileProblem, networkProblem, parseServerTiming } from "./segment_api.js";
import { countLabels, createGrid, findRange, indexOf, placePlane, PLANES, voxelOf, worldOf } from "./volume_data.js";

const LABELS_ONLY = "The browser cannot show this kind of file: these are its labels alone. It shows NIfTI (.nii, .nii.gz).";

const files = new Map(); // number -> promise of a Blob
let activeRequest = null; // AbortController
let newest = 0; // number of the newest file
let reading = Promise.resolve(); // of the newest file, for display
// grid: createGrid(); values, labels: typed arrays in the file's order, or null; slope, intercept: of the values
let volume = null;
let shown = { number: 0, name: "" };
let answer = null; // {blob: the NIfTI of labels, stats, voxelMl}
let canvases = [], view = null; // view: {position, sizes: [{width, height}] of the planes, ratio, opacity, low, high}
let table = new Uint32Array(256); // colors by label, RGBA in native byte order
let drawScheduled = false;

const post = (type, data = {}) => postMessage({ type, ...data });

const handlers = {
  canvas: (message) => (canvases = message.canvases),
  view(message) {
    view = message.view;
    scheduleDraw();
  },
  overlay(message) {
    table = message.table;
    scheduleDraw();
  },
  stop: () => activeRequest?.abort(),

  show({ number, name, file }) {
    newest = number;
    activeRequest?.abort();
    for (const old of files.keys()) if (old !== shown.number) files.delete(old);
    const bytes = file.arrayBuffer().then((buffer) => new Blob([buffer])); // a copy: the file may change
    files.set(number, bytes);
    reading = bytes.then(readNifti).then((content) => number === newest && display({ number, name }, content)).catch(() => {}); // `segment` reports errors
  },

  async segment(request) {
    const { number, name, classes } = request;
    newest = number;
    activeRequest?.abort();
    const controller = (activeRequest = new AbortController());
    const { signal } = controller, start = performance.now();
    try {
      const file = await files.get(number).catch(() => { throw new ApiError(fileProblem); });
      const { blob, headers } = await postJob({ ...request, file, signal }, { format: "nifti" });
      const totalMs = performance.now() - start;
      const found = await readNifti(blob);
      await reading;
      if (signal.aborted) return;
      const sameGrid = shown.number === number && volume.values && String(volume.grid.shape) === String(found.shape);
      if (!sameGrid) display({ number, name }, { ...found, ...(await readArray(file, found.shape)) });
      volume.labels = found.values;
      const known = sameGrid || !volume.grid.spacing.every((step) => step === 1); // a stack without a spacing gets 1 mm
      const voxelMl = known ? volume.grid.spacing.reduce((product, step) => product * step, 0.001) : null;
      answer = { blob, voxelMl, stats: countLabels(found.values, classes, voxelMl) };
      post("result", {
        number, totalMs, stats: answer.stats, model: headers.get("X-Model"),
        stages: parseServerTiming(headers.get("Server-Timing") ?? ""),
      });
      scheduleDraw();
    } catch (error) {
      await reading; // the page needs the volume on the screen before the problem
      if (!signal.aborted) post("problem", { number, problem: error instanceof ApiError ? error.problem : networkProblem(error) });
    } finally {
      if (activeRequest === controller) activeRequest = null;
    }
  },

  save({ what }) {
    if (!answer) return;
    if (what === "nifti") return post("save", { what, blob: answer.blob });
    const { stats, voxelMl } = answer, { shape } = volume.grid;
    const classes = stats.classes.map(({ label, name, rgb, voxels, fraction, ml }) => ({ label, name, rgb, voxels, fraction, ml }));
    post("save", { what, blob: new Blob([JSON.stringify({ shape, voxel_ml: voxelMl, classes, unlabeled: stats.unlabeled })], { type: "application/json" }) });
  },
};

// content: of readNifti; its values are null if there are only labels
function display(file, { shape, affine, values, slope, intercept }) {
  const grid = createGrid(shape, affine);
  [volume, shown, answer] = [{ grid, values, slope, intercept, labels: null }, file, null];
  const range = values && findRange(values).map((value) => value * slope + intercept).sort((one, two) => one - two);
  const { size, spacing } = grid;
  post("show", { ...file, width: size[2], height: size[1], size, spacing, range, note: values ? "" : LABELS_ONLY });
}

// An .npz such as an example of the model: `values`, depth x height x width. The answer to it has the width as first axis, so
// that both arrays have the same order. -> {values, slope, intercept}; values are null for any other file
async function readArray(file, shape) {
  const nothing = { values: null, slope: 1, intercept: 0 };
  try {
    const { values, affine } = readNpz(await file.arrayBuffer());
    const fits = !affine && String(values.shape.slice(0, 3).reverse()) === String(shape) && (values.shape[3] ?? 1) === 1;
    return fits ? { ...nothing, values: values.data } : nothing;
  } catch {
    return nothing;
  }
}

// Drawing, at most once per frame

function scheduleDraw() {
  if (!drawScheduled) requestAnimationFrame(draw);
  drawScheduled = true;
}

function draw() {
  drawScheduled = false;
  if (!volume || !view || view.position.some((step, axis) => step >= volume.grid.size[axis])) return; // of the volume before
  PLANES.forEach((plane, index) => drawPlane(plane, canvases[index], view.sizes[index]));
  postReadout();
}

function drawPlane(plane, canvas, { width, height }) {
  const { across, down, edges, upward } = plane, { size } = volume.grid, { ratio, position } = view;
  const [pixelWidth, pixelHeight] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== pixelWidth || canvas.height !== pixelHeight) Object.assign(canvas, { width: pixelWidth, height: pixelHeight });
  const ctx = canvas.getContext("2d", { alpha: false });
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.fillStyle = "#000";
  ctx.fillRect(0, 0, width, height);
  if (!width || !height) return;
  const slice = new OffscreenCanvas(size[across], size[down]), { left, top, stepX, stepY } = placePlane(plane, volume.grid, width, height);
  slice.getContext("2d").putImageData(new ImageData(renderSlice(plane), size[across], size[down]), 0, 0);
  ctx.imageSmoothingEnabled = false; // a voxel is a rectangle
  ctx.drawImage(slice, left, top, size[across] * stepX, size[down] * stepY);
  const x = left + (position[across] + 0.5) * stepX, y = top + ((upward ? size[down] - 1 - position[down] : position[down]) + 0.5) * stepY;
  ctx.strokeStyle = "#ffd54a99";
  ctx.lineWidth = 1;
  ctx.beginPath();
  for (const [x1, y1, x2, y2] of [[left, y, x - 8, y], [x + 8, y, left + size[across] * stepX, y], [x, top, x, y - 8], [x, y + 8, x, top + size[down] * stepY]]) {
    ctx.moveTo(x1, y1);
    ctx.lineTo(x2, y2);
  }
  ctx.stroke();
  ctx.font = "600 12px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3;
  ctx.strokeStyle = "#000";
  ctx.fillStyle = "#fff";
  const places = [[9, height / 2], [width - 9, height / 2], [width / 2, 10], [width / 2, height - 10]];
  edges.forEach((text, index) => {
    ctx.strokeText(text, ...places[index]);
    ctx.fillText(text, ...places[index]);
  });
}

// -> RGBA of the slice at the position
function renderSlice({ across, down, through, upward }) {
  const { grid, values, labels, slope, intercept } = volume, { size, strides } = grid, { position, opacity, low, high } = view;
  const colors = new Uint8Array(table.buffer), pixels = new Uint8ClampedArray(4 * size[across] * size[down]);
  const corner = [0, 0, 0];
  corner[through] = position[through];
  corner[down] = upward ? size[down] - 1 : 0;
  const [stepAcross, stepDown] = [strides[across], upward ? -strides[down] : strides[down]], factor = 255 / (high - low);
  for (let row = 0, out = 0, line = indexOf(grid, corner); row < size[down]; row++, line += stepDown) {
    for (let column = 0, at = line; column < size[across]; column++, at += stepAcross, out += 4) {
      const gray = values ? (values[at] * slope + intercept - low) * factor : 40; // clamped as it is stored; NaN becomes 0
      const color = labels ? 4 * labels[at] : 0, alpha = labels ? (opacity * colors[color + 3]) / 255 : 0;
      const base = (gray > 0 ? Math.min(255, gray) : 0) * (1 - alpha);
      pixels[out] = base + colors[color] * alpha;
      pixels[out + 1] = base + colors[color + 1] * alpha;
      pixels[out + 2] = base + colors[color + 2] * alpha;
      pixels[out + 3] = 255;
    }
  }
  return pixels;
}

function postReadout() {
  const { grid, values, labels, slope, intercept } = volume, at = indexOf(grid, view.position), voxel = voxelOf(grid, view.position);
  const value = values && Number((values[at] * slope + intercept).toPrecision(5));
  post("readout", { label: labels && labels[at], value, voxel, world: worldOf(grid, voxel) });
}

onmessage = async ({ data }) => {
  try {
    await handlers[data.type](data);
  } catch (error) {
    post("problem", { number: shown.number, problem: networkProblem(error) });
  }
};
