// node page.mjs FOLDER PAGE...: one line of JSON for each page and each way of looking at it, in a headless Chromium.
// FOLDER receives screenshots and prints. Findings: what overflows, requests, errors, load time, axe-core's violations.
import { readFile, mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const WIDTHS = [360, 1280];
const TALLEST = 8000; // px: beyond 8192 Chromium's software renderer draws the page again from its top
const SCHEMES = ["light", "dark"];
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Names of elements that reach beyond the window, and by how much the page scrolls sideways. */
function overflow() {
  const width = document.documentElement.clientWidth;
  const seen = (e) => !e.closest(".unseen") && !e.closest("svg, details:not([open]) > :not(summary)");
  const beyond = [...document.body.querySelectorAll("*")].filter((e) => seen(e) && e.getBoundingClientRect().right > width + 1);
  return {
    scroll: document.documentElement.scrollWidth - width,
    beyond: beyond.slice(0, 5).map((e) => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`),
  };
}

async function look(browser, file, folder, width, scheme) {
  const page = await browser.newPage();
  const requests = [], errors = [], url = pathToFileURL(path.resolve(file)).href;
  page.on("request", (r) => { if (r.url() !== url && !r.url().startsWith("data:")) requests.push(r.url().slice(0, 200)); });
  page.on("console", (m) => { if (["error", "warn"].includes(m.type())) errors.push(m.text().slice(0, 200)); });
  page.on("pageerror", (e) => errors.push(String(e.message).slice(0, 200)));
  await page.setViewport({ width, height: width < 600 ? 740 : 900, deviceScaleFactor: 1 });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.goto(url, { waitUntil: "load" });
  const { load, paint } = await page.evaluate(() => ({
    load: performance.getEntriesByType("navigation")[0].loadEventEnd,
    paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
  }));
  const name = path.join(folder, `${path.basename(file, ".html")}-${width}-${scheme}`);
  const height = Math.min(TALLEST, await page.evaluate(() => document.documentElement.scrollHeight));
  await page.screenshot({ path: `${name}.png`, clip: { x: 0, y: 0, width, height } });
  const folded = await page.evaluate(overflow);
  await page.evaluate(() => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  const opened = await page.evaluate(overflow);
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations", "incomplete"] }));
  const said = (v) => ({ id: v.id, impact: v.impact, nodes: v.nodes.length, first: v.nodes[0].html.slice(0, 160) });
  const result = {
    file: path.basename(file), width, scheme, load_ms: load, paint_ms: paint, requests, errors,
    scroll: Math.max(folded.scroll, opened.scroll), beyond: [...folded.beyond, ...opened.beyond],
    violations: found.violations.map(said), rules: found.passes.length + found.violations.length,
  };
  await page.close();
  return result;
}

/** The page as a print on A4, with all that is folded. */
async function print(browser, file, folder) {
  const page = await browser.newPage();
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await page.goto(pathToFileURL(path.resolve(file)).href, { waitUntil: "load" });
  const pdf = Buffer.from(await page.pdf({ format: "A4", preferCSSPageSize: true }));
  await writeFile(path.join(folder, `${path.basename(file, ".html")}.pdf`), pdf);
  const sheets = pdf.toString("latin1").match(/\/Type\s*\/Page\b/g)?.length ?? 0;
  await page.setViewport({ width: 680, height: 960 }); // A4 less its margins
  await page.emulateMediaType("print");
  const { scroll, beyond } = await page.evaluate(overflow);
  await page.screenshot({ path: path.join(folder, `${path.basename(file, ".html")}-print.png`), fullPage: true });
  await page.close();
  return { file: path.basename(file), print: true, sheets, scroll, beyond, bytes: pdf.length };
}

const [folder, ...files] = process.argv.slice(2);
await mkdir(folder, { recursive: true });
const executablePath = await chromium.executablePath();
const browser = await puppeteer.launch({ args: chromium.args, executablePath, headless: "shell" });
try {
  console.log(JSON.stringify({ browser: await browser.version() }));
  for (const file of files) {
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) console.log(JSON.stringify(await look(browser, file, folder, width, scheme)));
    }
    console.log(JSON.stringify(await print(browser, file, folder)));
  }
} finally {
  await browser.close();
}
