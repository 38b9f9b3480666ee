// A label map as a PNG whose pixel values are the class ids, as `offseg segment` writes it: paletted, or 16-bit gray.

/** Return a Blob of labels (Uint8 or Uint16, height x width); `palette` has [red, green, blue] of every class. */
export async function labelPng(labels, width, height, palette) {
  const isWide = labels.BYTES_PER_ELEMENT === 2;
  const line = width * labels.BYTES_PER_ELEMENT + 1; // each begins with its filter, none
  const rows = new Uint8Array(line * height);
  for (let y = 0; y < height; y++) {
    const part = labels.subarray(y * width, (y + 1) * width);
    if (isWide) {
      const view = new DataView(rows.buffer, y * line + 1);
      part.forEach((label, x) => view.setUint16(2 * x, label));
    } else {
      rows.set(part, y * line + 1);
    }
  }
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, isWide ? 16 : 8);
  header.setUint8(9, isWide ? 0 : 3);
  const parts = [
    new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", new Uint8Array(header.buffer)),
    ...(isWide ? [] : [chunk("PLTE", new Uint8Array(palette.flat()))]),
    chunk("IDAT", new Uint8Array(await new Response(deflated).arrayBuffer())),
    chunk("IEND", new Uint8Array(0)),
  ];
  return new Blob(parts, { type: "image/png" });
}

function chunk(name, content) {
  const result = new Uint8Array(content.length + 12), view = new DataView(result.buffer);
  view.setUint32(0, content.length);
  for (let i = 0; i < 4; i++) result[4 + i] = name.charCodeAt(i);
  result.set(content, 8);
  view.setUint32(8 + content.length, checksum(result.subarray(4, 8 + content.length)));
  return result;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function checksum(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = (sum >>> 8) ^ TABLE[(sum ^ byte) & 255];
  return (sum ^ 0xffffffff) >>> 0;
}
