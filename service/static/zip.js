// Writes a zip file without compression (APPNOTE 6.3).

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = ~0;
  for (let at = 0; at < bytes.length; at++) crc = CRC[(crc ^ bytes[at]) & 255] ^ (crc >>> 8);
  return ~crc;
}

// files: of File -> a File of this name
export async function zipFiles(files, zipName) {
  const parts = [], directory = [];
  let offset = 0;
  for (const file of files) {
    const name = new TextEncoder().encode(file.name), content = new Uint8Array(await file.arrayBuffer());
    // Version 2.0, names in UTF-8, stored, no date; then checksum and sizes.
    const fields = pack([20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(content), 4], [content.length, 4], [content.length, 4], [name.length, 2], [0, 2]);
    const local = [pack([0x04034b50, 4]), fields, name, content];
    directory.push(pack([0x02014b50, 4], [20, 2]), fields, pack([0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name);
    parts.push(...local);
    offset += local.reduce((sum, part) => sum + part.length, 0);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = pack([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
  return new File([...parts, ...directory, end], zipName);
}

// [number, bytes] pairs, lowest byte first
function pack(...fields) {
  return Uint8Array.from(fields.flatMap(([number, bytes]) => Array.from({ length: bytes }, (_, index) => number >>> (8 * index) & 255)));
}
