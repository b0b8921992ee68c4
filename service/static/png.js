// Decodes the PNG files that the service writes: 8 bits, one channel (labels or confidence), not interlaced.
// The browser's decoder returns colors instead of labels, and two classes may have the same color.

const NONE = 0, SUB = 1, UP = 2, AVERAGE = 3, PAETH = 4; // the filters of the PNG specification, 9.2

// bytes: Uint8Array of a file -> {width, height, samples: Uint8Array of height x width, row by row}
export async function readPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const width = view.getUint32(16), height = view.getUint32(20);
  const [depth, colorType, , , interlaced] = bytes.subarray(24, 29);
  if (depth !== 8 || (colorType !== 0 && colorType !== 3) || interlaced)
    throw new Error("Expected an 8-bit PNG with one channel, not interlaced");
  const chunks = [];
  for (let at = 8; at + 12 <= bytes.length; at += 12 + view.getUint32(at)) {
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IDAT") chunks.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const inflated = new Blob(chunks).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (rows.length !== height * (width + 1)) throw new Error("The PNG is truncated");
  return { width, height, samples: unfilter(rows, width, height) };
}

function unfilter(rows, width, height) {
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
        out[x] = row[x] + predict(filter, left, above[x], corner);
      }
    above = out;
  }
  return samples;
}

function predict(filter, left, above, corner) {
  if (filter === SUB) return left;
  if (filter === AVERAGE) return (left + above) >> 1;
  if (filter !== PAETH) throw new Error("The PNG has an unknown filter type");
  const byLeft = Math.abs(above - corner), byAbove = Math.abs(left - corner);
  const byCorner = Math.abs(left + above - 2 * corner);
  return byLeft <= byAbove && byLeft <= byCorner ? left : byAbove <= byCorner ? above : corner;
}
