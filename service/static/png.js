// Reads the PNGs that the service writes: 8 bits, one channel (a mask's labels, or a confidence), not interlaced.
// The browser's own decoder gives colours in place of labels, and two classes may share a colour.

const NONE = 0, SUB = 1, UP = 2, AVERAGE = 3, PAETH = 4; // the filters of the PNG specification, 9.2

// bytes: Uint8Array of a file -> {width, height, samples: Uint8Array of height x width, row by row}
export async function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = view.getUint32(16), height = view.getUint32(20);
  const [depth, colour, , , interlaced] = bytes.subarray(24, 29);
  if (depth !== 8 || (colour !== 0 && colour !== 3) || interlaced) throw new Error("a PNG of another kind came");
  const packed = [];
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") packed.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const inflated = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (rows.length !== height * (width + 1)) throw new Error("a PNG came that is cut short");
  return { width, height, samples: unfiltered(rows, width, height) };
}

function unfiltered(rows, width, height) {
  const samples = new Uint8Array(width * height);
  let above = new Uint8Array(width);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const row = rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1));
    const out = samples.subarray(y * width, (y + 1) * width);
    if (filter === NONE) out.set(row);
    else if (filter === UP) for (let x = 0; x < width; x++) out[x] = row[x] + above[x];
    else
      for (let x = 0; x < width; x++) {
        const left = x ? out[x - 1] : 0, corner = x ? above[x - 1] : 0;
        out[x] = row[x] + predicted(filter, left, above[x], corner);
      }
    above = out;
  }
  return samples;
}

function predicted(filter, left, above, corner) {
  if (filter === SUB) return left;
  if (filter === AVERAGE) return (left + above) >> 1;
  if (filter !== PAETH) throw new Error("a PNG came with a filter that does not exist");
  const byLeft = Math.abs(above - corner), byAbove = Math.abs(left - corner);
  const byCorner = Math.abs(left + above - 2 * corner);
  return byLeft <= byAbove && byLeft <= byCorner ? left : byAbove <= byCorner ? above : corner;
}
