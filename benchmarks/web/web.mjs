// node web.mjs CASES: one line of JSON for each case, run by onnxruntime-web (WebAssembly) in a headless Chromium.
import { createServer } from "node:http";
import { readFile, readdir } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(process.argv[2]);
const folders = { "/cases/": root, "/ort/": path.join(here, "node_modules/onnxruntime-web/dist"), "/own/": here };
const types = { ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html" };

const server = createServer(async (request, response) => {
  const url = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
  if (url === "/") {
    response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>cases</title>");
    return;
  }
  const prefix = Object.keys(folders).find((p) => url.startsWith(p));
  const file = prefix && path.join(folders[prefix], url.slice(prefix.length));
  try {
    if (!file?.startsWith(folders[prefix])) throw new Error("outside");
    const body = await readFile(file);
    response.writeHead(200, { "content-type": types[path.extname(file)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const executablePath = await chromium.executablePath();
const browser = await puppeteer.launch({ args: chromium.args, executablePath, headless: "shell" });
try {
  console.error(await browser.version());
  for (const name of (await readdir(root)).sort()) {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    try {
      const found = await page.evaluate(async (name) => {
        const ort = await import("/ort/ort.wasm.min.mjs");
        const { compare } = await import("/own/compare.mjs");
        ort.env.wasm.numThreads = 1;
        ort.env.wasm.wasmPaths = "/ort/";
        ort.env.logLevel = "fatal";
        const read = async (file) => (await fetch(`/cases/${name}/${file}`)).arrayBuffer();
        const meta = JSON.parse(new TextDecoder().decode(await read("meta.json")));
        return compare(ort, { executionProviders: ["wasm"] }, meta, read);
      }, name);
      console.log(JSON.stringify({ name, ...found }));
    } catch (error) {
      console.log(JSON.stringify({ name, failure: String(error.message ?? error).slice(0, 200) }));
    }
    await page.close();
  }
} finally {
  await browser.close();
  server.close();
}
