/** A checkpoint's file: eight bytes of length, a JSON header, raw little-endian tensors. Everything becomes float32, which is exact. */

const LARGEST = 65536; // of a parameter; beyond it a float of exact arithmetic could become infinite

/** ArrayBuffer → { name: Float32Array }. Throws for what is no such file. */
export function readTensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(header).filter(([name]) => name !== "__metadata__")) {
    const read = READ[dtype];
    if (!read) throw new Error(`${name} is of type ${dtype}, which no checkpoint of Folio has`);
    tensors[name] = read(buffer.slice(8 + length + from, 8 + length + to)); // a copy: the offset may be odd
    if (!tensors[name].every((x) => Math.abs(x) <= LARGEST)) throw new Error(`${name} holds what is no parameter`);
  }
  return tensors;
}

const READ = {
  F32: (bytes) => new Float32Array(bytes),
  BF16: (bytes) => new Float32Array(Uint32Array.from(new Uint16Array(bytes), (x) => (x << 16) >>> 0).buffer), // the upper half of a float32
  F16: (bytes) => Float32Array.from(new Uint16Array(bytes), half),
};

/** The number of 16 bits. */
function half(x) {
  const exponent = (x >> 10) & 31, digits = x & 1023, sign = x >> 15 ? -1 : 1;
  if (exponent === 31) return NaN;
  let value = exponent ? 1024 + digits : digits;
  for (let e = exponent || 1; e < 25; e++) value /= 2;
  for (let e = 25; e < exponent; e++) value *= 2;
  return sign * value;
}
