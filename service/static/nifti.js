// Reads NIfTI-1 and NIfTI-2 volumes (nifti1.h, nifti2.h) for display, as models/readers/nifti.py does for the network.

const ARRAYS = { 2: Uint8Array, 4: Int16Array, 8: Int32Array, 16: Float32Array, 64: Float64Array, 256: Int8Array, 512: Uint16Array, 768: Uint32Array, 1024: BigInt64Array, 1280: BigUint64Array };
const MM_PER_UNIT = { 0: 1, 1: 1000, 2: 1, 3: 0.001 };
const HEADER_BYTES = 540; // of NIfTI-2; NIfTI-1 has 348
const MAX_BYTES = 2 ** 31; // of voxels, in memory

// blob -> {shape: [i, j, k], values: typed array, i fastest, slope, intercept, affine: three rows of four, to mm (RAS)}.
// Throws for anything else.
export async function readNifti(blob) {
  const magic = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  const compressed = magic[0] === 0x1f && magic[1] === 0x8b;
  const reader = (compressed ? blob.stream().pipeThrough(new DecompressionStream("gzip")) : blob.stream()).getReader();
  try {
    return await readStream(reader);
  } finally {
    reader.cancel().catch(() => {}); // what follows the voxels is not read
  }
}

// No more is inflated than the header promises.
async function readStream(reader) {
  let start = new Uint8Array(0);
  while (start.length < HEADER_BYTES) {
    const { value, done } = await reader.read();
    if (done) break;
    start = concatenate(start, value);
  }
  const header = parseHeader(start), bytes = new Uint8Array(header.bytes);
  let at = -header.offset;
  for (let part = start; ; ) {
    const skipped = Math.max(0, -at), used = part.subarray(skipped, skipped + bytes.length - Math.max(0, at));
    bytes.set(used, Math.max(0, at));
    at += part.length;
    if (at >= bytes.length) break;
    const { value, done } = await reader.read();
    if (done) throw new Error("The NIfTI is truncated");
    part = value;
  }
  const { shape, slope, intercept, affine } = header;
  return { shape, slope, intercept, affine, values: toNumbers(bytes, header) };
}

function concatenate(one, two) {
  const both = new Uint8Array(one.length + two.length);
  both.set(one);
  both.set(two, one.length);
  return both;
}

function parseHeader(start) {
  const view = new DataView(start.buffer, start.byteOffset, start.byteLength);
  if (view.byteLength < 348) throw new Error("The file is no NIfTI");
  const little = [true, false].find((order) => [348, 540].includes(view.getInt32(0, order)));
  if (little === undefined) throw new Error("The file is no NIfTI");
  const second = view.getInt32(0, little) === 540;
  const real = (at, index) => (second ? view.getFloat64(at + 8 * index, little) : view.getFloat32(at + 4 * index, little));
  const lengths = Array.from({ length: 8 }, (_, index) => (second ? Number(view.getBigInt64(16 + 8 * index, little)) : view.getInt16(40 + 2 * index, little)));
  const axes = lengths[0], shape = [1, 2, 3].map((axis) => (axis <= axes ? lengths[axis] : 1));
  if (axes < 1 || axes > 7 || shape.some((length) => length < 1) || lengths.slice(4, axes + 1).some((length) => length > 1)) throw new Error("The NIfTI has not three axes");
  const code = view.getInt16(second ? 12 : 70, little), ArrayType = ARRAYS[code];
  const count = shape[0] * shape[1] * shape[2];
  if (!ArrayType || count * ArrayType.BYTES_PER_ELEMENT > MAX_BYTES) throw new Error("The NIfTI is too large, or has another type of voxels");
  const promised = second ? Number(view.getBigInt64(168, little)) : view.getFloat32(108, little);
  const offset = promised >= (second ? 540 : 348) ? Math.trunc(promised) : second ? 544 : 352;
  const [scale, shift] = [0, 1].map((index) => real(second ? 176 : 112, index));
  const scaled = Number.isFinite(scale) && scale !== 0 && Number.isFinite(shift);
  const unit = MM_PER_UNIT[(second ? view.getInt32(500, little) : view.getUint8(123)) & 7] ?? 1;
  const affine = readAffine(view, little, second, real, shape).map((row) => row.map((number) => number * unit));
  return { shape, ArrayType, little, offset, bytes: count * ArrayType.BYTES_PER_ELEMENT, slope: scaled ? scale : 1, intercept: scaled ? shift : 0, affine };
}

// The sform; the qform without one; without both that of Analyze.
function readAffine(view, little, second, real, shape) {
  const codes = [0, 1].map((index) => (second ? view.getInt32(344 + 4 * index, little) : view.getInt16(252 + 2 * index, little)));
  const numbers = (at, count) => Array.from({ length: count }, (_, index) => real(at, index));
  if (codes[1] > 0) {
    const rows = numbers(second ? 400 : 280, 12);
    return [rows.slice(0, 4), rows.slice(4, 8), rows.slice(8)];
  }
  const [handedness, ...steps] = numbers(second ? 104 : 76, 4);
  if (codes[0] <= 0) return [0, 1, 2].map((axis) => {
    const step = axis ? steps[axis] : -steps[0];
    return [...[0, 1, 2].map((each) => (each === axis ? step : 0)), (-step * (shape[axis] - 1)) / 2];
  });
  const [b, c, d, ...origin] = numbers(second ? 352 : 256, 6);
  const a = Math.sqrt(Math.max(0, 1 - (b * b + c * c + d * d)));
  steps[2] *= handedness < 0 ? -1 : 1;
  return [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ].map((row, axis) => [...row.map((cosine, index) => cosine * steps[index]), origin[axis]]);
}

function toNumbers(bytes, { ArrayType, little }) {
  const size = ArrayType.BYTES_PER_ELEMENT;
  if (!little && size > 1) for (let at = 0; at < bytes.length; at += size) bytes.subarray(at, at + size).reverse();
  const values = new ArrayType(bytes.buffer); // the processor's order: every browser runs on little-endian ones
  return ArrayType === BigInt64Array || ArrayType === BigUint64Array ? Float32Array.from(values, Number) : values;
}
