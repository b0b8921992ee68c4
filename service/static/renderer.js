// Draws the image and its class colors, on the screen and for the download. Runs in the worker, so that large images do not
// block panning and zooming.

const MAX_PIXELS = 2 ** 24; // larger images are reduced, for their memory (4 bytes per pixel, twice)
const PREVIEW_SIDE = 2048; // longer side in pixels of the copy that is drawn when zoomed out
const BAND_PIXELS = 2 ** 20; // pixels colored per putImageData call

let canvas, ctx;
let view = null; // {scale, x, y, width, height, ratio, opacity, split, smooth}: CSS pixels, split 0..1 or null
let image = null, overlay = null; // {full, small}: overlay.full has the size of image.full
let drawScheduled = false;
let pendingOverlay = null; // {mask, table, minConfidence}: to color before the next frame

export function setCanvas(offscreen) {
  canvas = offscreen;
  ctx = canvas.getContext("2d");
}

// file: Blob of an image -> its {width, height} after EXIF rotation, or undefined if isCurrent() became false meanwhile.
// Throws if the browser cannot decode it as the service does.
export async function showImage(file, isCurrent = () => true) {
  if (await isWebpWithExif(file)) throw new Error("Unreliable EXIF orientation in WebP");
  let bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) bitmap = await resizeBitmap(bitmap, Math.sqrt(MAX_PIXELS / (width * height)));
  const small = await resizeBitmap(bitmap, Math.min(1, PREVIEW_SIDE / Math.max(width, height)), true);
  const decoded = { width, height, full: bitmap, small };
  if (!isCurrent()) return release(decoded);
  release(image);
  image = decoded;
  overlay = pendingOverlay = null;
  scheduleDraw();
  return { width, height };
}

// mask: {labels, confidence, width, height}, Uint8Arrays of height x width; table: Uint32Array of 256 RGBA colors in native
// byte order; minConfidence: 0..255, pixels below it get no color. Only the last
// call before a frame counts, because sliders fire faster than a large image is colored.
export function updateOverlay(mask, table, minConfidence) {
  pendingOverlay = { mask, table, minConfidence };
  scheduleDraw();
}

function paintOverlay() {
  if (!pendingOverlay) return;
  const { mask: { labels, confidence, width, height }, table, minConfidence } = pendingOverlay;
  pendingOverlay = null;
  const step = Math.max(1, Math.sqrt((width * height) / MAX_PIXELS));
  const [w, h] = [width, height].map((side) => Math.max(1, Math.floor(side / step)));
  const full = overlay?.full ?? new OffscreenCanvas(w, h);
  const fullCtx = full.getContext("2d");
  const rows = Math.min(h, Math.max(1, Math.floor(BAND_PIXELS / w)));
  const band = new ImageData(w, rows);
  const pixels = new Uint32Array(band.data.buffer);
  for (let top = 0; top < h; top += rows) {
    for (let y = 0, to = 0; y < rows && top + y < h; y++) {
      const row = Math.floor((top + y) * step) * width;
      for (let x = 0; x < w; x++, to++) {
        const from = row + (step === 1 ? x : Math.floor(x * step));
        pixels[to] = confidence[from] < minConfidence ? 0 : table[labels[from]];
      }
    }
    fullCtx.putImageData(band, 0, top);
  }
  overlay = { full, small: resizeCanvas(full, Math.min(1, PREVIEW_SIDE / Math.max(w, h))) };
}

export function setView(newView) {
  view = newView;
  scheduleDraw();
}

// -> JPEG Blob of image and overlay, at the image's size (at most MAX_PIXELS).
export async function exportOverlay(opacity) {
  paintOverlay();
  const output = new OffscreenCanvas(image.full.width, image.full.height);
  const outputCtx = output.getContext("2d");
  outputCtx.drawImage(image.full, 0, 0);
  outputCtx.globalAlpha = opacity;
  outputCtx.drawImage(overlay.full, 0, 0, output.width, output.height);
  return output.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

// Draws at most once per frame.
function scheduleDraw() {
  if (!drawScheduled) requestAnimationFrame(draw);
  drawScheduled = true;
}

function draw() {
  drawScheduled = false;
  paintOverlay();
  if (!canvas || !view) return;
  const { scale, x, y, ratio, opacity, split, smooth } = view;
  const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.clearRect(0, 0, width, height);
  if (!image) return;
  const target = [x * ratio, y * ratio, image.width * scale * ratio, image.height * scale * ratio];
  ctx.imageSmoothingEnabled = scale * ratio < 2; // show single pixels when zoomed in further
  ctx.imageSmoothingQuality = "medium";
  const pick = ({ full, small }) => (target[2] <= small.width ? small : full);
  ctx.drawImage(pick(image), ...target);
  if (!overlay) return;
  ctx.save();
  if (split !== null) {
    ctx.beginPath();
    ctx.rect(split * width, 0, width, height);
    ctx.clip();
  }
  ctx.globalAlpha = opacity;
  ctx.imageSmoothingEnabled ||= smooth;
  ctx.drawImage(pick(overlay), ...target);
  ctx.restore();
}

// The service applies the EXIF orientation of WebP files, Chromium does not.
async function isWebpWithExif(file) {
  const head = new Uint8Array(await file.slice(0, 21).arrayBuffer());
  return String.fromCharCode(...head.subarray(8, 16)) === "WEBPVP8X" && Boolean(head[20] & 0b1000);
}

// Frees the memory now instead of at the next garbage collection.
function release(old) {
  old?.full.close();
  old?.small.close();
}

async function resizeBitmap(bitmap, factor, keep = false) {
  if (factor === 1) return bitmap;
  const [resizeWidth, resizeHeight] = scaledSize(bitmap, factor);
  const small = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
  if (!keep) bitmap.close();
  return small;
}

function resizeCanvas(source, factor) {
  if (factor === 1) return source;
  const small = new OffscreenCanvas(...scaledSize(source, factor));
  const smallCtx = small.getContext("2d");
  smallCtx.imageSmoothingQuality = "high";
  smallCtx.drawImage(source, 0, 0, small.width, small.height);
  return small;
}

// At least one pixel, for long narrow images.
function scaledSize({ width, height }, factor) {
  return [width, height].map((side) => Math.max(1, Math.round(side * factor)));
}
