import { readFile } from "node:fs/promises";
import { run } from "./run.js";

const read = async (name) => {
  const bytes = await readFile(new URL(name, import.meta.url));
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
};
console.log(JSON.stringify(await run(read)));
