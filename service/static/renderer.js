// Lays the classes' colours over the picture, on the screen and for the download. Runs in the worker, on a canvas that
// the page has handed over, so that no picture is too large to move about.

const LARGEST = 2 ** 24; // pixels that are drawn from; a larger picture is reduced, for its memory (4 bytes each, twice)
const SMALL = 2048; // pixels of the longer side of what is drawn from while all is seen
const BAND = 2 ** 20; // pixels that are coloured at once

let canvas, pen;
let view = null; // {scale, x, y, width, height, ratio, opacity, split}: CSS pixels, split 0..1 or null
let picture = null, colours = null; // {full, small}: the second as large as the first
let due = false;
let wish = null; // {mask, table, least}: what is to be coloured before the next picture of the screen

export function onto(given) {
  canvas = given;
  pen = canvas.getContext("2d");
}

// file: Blob of a picture -> its upright {width, height}, or nothing where another has come meanwhile. Throws where the browser cannot read it as the service does.
export async function show(file, current = () => true) {
  if (await mayLieOtherwise(file)) throw new Error("only the service knows how it lies");
  let bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  if (width * height > LARGEST) bitmap = await reduced(bitmap, Math.sqrt(LARGEST / (width * height)));
  const small = await reduced(bitmap, Math.min(1, SMALL / Math.max(width, height)), true);
  const brought = { width, height, full: bitmap, small };
  if (!current()) return drop(brought);
  drop(picture);
  picture = brought;
  colours = wish = null;
  redraw();
  return { width, height };
}

// labels, confidence: Uint8Array of height x width; table: Uint32Array of 256, RGBA as the machine orders its bytes;
// least: 0..255, what is less sure stays bare. A slider wishes faster than a large picture is coloured: the last wish counts.
export function colour(mask, table, least) {
  wish = { mask, table, least };
  redraw();
}

function dye() {
  if (!wish) return;
  const { mask: { labels, confidence, width, height }, table, least } = wish;
  wish = null;
  const step = Math.max(1, Math.sqrt((width * height) / LARGEST));
  const [w, h] = [width, height].map((side) => Math.max(1, Math.floor(side / step)));
  const full = colours?.full ?? new OffscreenCanvas(w, h);
  const brush = full.getContext("2d");
  const rows = Math.min(h, Math.max(1, Math.floor(BAND / w)));
  const band = new ImageData(w, rows);
  const pixels = new Uint32Array(band.data.buffer);
  for (let top = 0; top < h; top += rows) {
    for (let y = 0, to = 0; y < rows && top + y < h; y++) {
      const row = Math.floor((top + y) * step) * width;
      for (let x = 0; x < w; x++, to++) {
        const from = row + (step === 1 ? x : Math.floor(x * step));
        pixels[to] = confidence[from] < least ? 0 : table[labels[from]];
      }
    }
    brush.putImageData(band, 0, top);
  }
  colours = { full, small: halved(full, Math.min(1, SMALL / Math.max(w, h))) };
}

export function look(at) {
  view = at;
  redraw();
}

// The picture under its colours, as a JPEG Blob of the picture's size (of LARGEST pixels at most).
export async function composed(opacity) {
  dye();
  const sheet = new OffscreenCanvas(picture.full.width, picture.full.height);
  const brush = sheet.getContext("2d");
  brush.drawImage(picture.full, 0, 0);
  brush.globalAlpha = opacity;
  brush.drawImage(colours.full, 0, 0, sheet.width, sheet.height);
  return sheet.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

// Several moves of the pointer between two pictures of the screen are drawn once.
function redraw() {
  if (!due) requestAnimationFrame(draw);
  due = true;
}

function draw() {
  due = false;
  dye();
  if (!canvas || !view) return;
  const { scale, x, y, ratio, opacity, split } = view;
  const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!picture) return;
  const place = [x * ratio, y * ratio, picture.width * scale * ratio, picture.height * scale * ratio];
  pen.imageSmoothingEnabled = scale * ratio < 2; // nearer than that, each pixel is to be seen
  pen.imageSmoothingQuality = "medium";
  const from = ({ full, small }) => (place[2] <= small.width ? small : full);
  pen.drawImage(from(picture), ...place);
  if (!colours) return;
  pen.save();
  if (split !== null) {
    pen.beginPath();
    pen.rect(split * width, 0, width, height);
    pen.clip();
  }
  pen.globalAlpha = opacity;
  pen.drawImage(from(colours), ...place);
  pen.restore();
}

// A WebP with EXIF data: the service turns it upright by them, Chromium does not.
async function mayLieOtherwise(file) {
  const head = new Uint8Array(await file.slice(0, 21).arrayBuffer());
  return String.fromCharCode(...head.subarray(8, 16)) === "WEBPVP8X" && Boolean(head[20] & 0b1000);
}

// Its memory is given back now, not when it is noticed that nobody looks at it.
function drop(old) {
  old?.full.close();
  old?.small.close();
}

async function reduced(bitmap, factor, keep = false) {
  if (factor === 1) return bitmap;
  const [resizeWidth, resizeHeight] = shrunk(bitmap, factor);
  const small = await createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
  if (!keep) bitmap.close();
  return small;
}

function halved(sheet, factor) {
  if (factor === 1) return sheet;
  const small = new OffscreenCanvas(...shrunk(sheet, factor));
  const brush = small.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(sheet, 0, 0, small.width, small.height);
  return small;
}

// One pixel is left of the narrow side of a long strip.
function shrunk({ width, height }, factor) {
  return [width, height].map((side) => Math.max(1, Math.round(side * factor)));
}
