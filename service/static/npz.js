// Reads the arrays of an .npz that the service sends: a zip file without compression (APPNOTE 6.3), of NumPy's .npy (NEP 1).

const END_OF_DIRECTORY = 0x06054b50, MEMBER = 0x02014b50;
const TYPES = { "|u1": Uint8Array, "<f4": Float32Array, "<f8": Float64Array };

// buffer: ArrayBuffer -> {name: {shape: [lengths], data: typed array, or strings}}. Throws for anything else.
export function readNpz(buffer) {
  const bytes = new DataView(buffer);
  let end = buffer.byteLength - 22;
  while (end >= 0 && bytes.getUint32(end, true) !== END_OF_DIRECTORY) end--;
  if (end < 0) throw new Error("The response is not an npz file");
  const arrays = {};
  let at = bytes.getUint32(end + 16, true);
  for (let count = bytes.getUint16(end + 10, true); count > 0; count--) {
    if (bytes.getUint32(at, true) !== MEMBER || bytes.getUint16(at + 10, true)) throw new Error("The npz file is compressed or corrupt");
    const [size, nameLength, rest] = [bytes.getUint32(at + 24, true), bytes.getUint16(at + 28, true), bytes.getUint16(at + 30, true) + bytes.getUint16(at + 32, true)];
    const name = decodeText(buffer, at + 46, nameLength), header = bytes.getUint32(at + 42, true);
    const start = header + 30 + bytes.getUint16(header + 26, true) + bytes.getUint16(header + 28, true);
    arrays[name.replace(/\.npy$/, "")] = readArray(buffer, start, start + size);
    at += 46 + nameLength + rest;
  }
  return arrays;
}

function readArray(buffer, start, end) {
  const bytes = new DataView(buffer, start, end - start), short = bytes.getUint8(6) === 1;
  const length = short ? bytes.getUint16(8, true) : bytes.getUint32(8, true), first = short ? 10 : 12;
  const header = decodeText(buffer, start + first, length), data = start + first + length;
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((each) => each.trim()).map(Number);
  const type = /'descr': '([^']+)'/.exec(header)[1];
  if (type.startsWith("<U")) return { shape, data: readStrings(buffer.slice(data, end), Number(type.slice(2))) };
  if (!TYPES[type]) throw new Error(`The npz file has an array of ${type}`);
  // A typed array begins at a multiple of its numbers' bytes, which a member of a zip file does not.
  return { shape, data: type === "|u1" ? new Uint8Array(buffer, data, end - data) : new TYPES[type](buffer.slice(data, end)) };
}

// Of `length` characters each, four bytes a character, filled with zeros.
function readStrings(buffer, length) {
  const codes = new Uint32Array(buffer), strings = [];
  for (let at = 0; at < codes.length; at += length) strings.push(String.fromCodePoint(...codes.subarray(at, at + length).filter(Boolean)));
  return strings;
}

const decodeText = (buffer, start, length) => new TextDecoder().decode(new Uint8Array(buffer, start, length));
