// node node.mjs CASES: one line of JSON for each case, run by onnxruntime-node.
import { readFile, readdir } from "node:fs/promises";
import path from "node:path";
import ort from "onnxruntime-node";
import { compare } from "./compare.mjs";

const root = process.argv[2];
for (const name of (await readdir(root)).sort()) {
  const read = async (file) => {
    const bytes = await readFile(path.join(root, name, file));
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  };
  const meta = JSON.parse(new TextDecoder().decode(await read("meta.json")));
  try {
    const options = { intraOpNumThreads: 1, logSeverityLevel: 4 };
    console.log(JSON.stringify({ name, ...(await compare(ort, options, meta, read)) }));
  } catch (error) {
    console.log(JSON.stringify({ name, failure: String(error.message ?? error).slice(0, 200) }));
  }
}
