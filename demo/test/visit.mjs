// Visits an exported page in headless Chromium and prints, as JSON, what happened there.
//
//   node test/visit.mjs CHROMIUM FOLDER [--camera X.y4m] [--video FILE] [--isolated]
//                       [--seconds N] [--screenshots DIR]

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { parseArgs } from "node:util";

import puppeteer from "puppeteer-core";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".wasm": "application/wasm",
};
const SIZES = { wide: [1280, 800], narrow: [390, 844] };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    camera: { type: "string" },
    video: { type: "string" },
    isolated: { type: "boolean" },
    seconds: { type: "string", default: "10" },
    screenshots: { type: "string" },
  },
});
const [executablePath, folder] = positionals;

const server = createServer(async ({ url }, response) => {
  const name = normalize(new URL(url, "http://x").pathname).replace(/\/$/, "/index.html");
  try {
    const content = await readFile(join(folder, name));
    response.setHeader("Content-Type", TYPES[extname(name)] ?? "application/octet-stream");
    response.setHeader("Content-Length", content.length);
    if (values.isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    response.end(content);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const origin = `http://127.0.0.1:${server.address().port}`;

const camera = values.camera
  ? [
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
      `--use-file-for-fake-video-capture=${values.camera}`,
    ]
  : [];
const browser = await puppeteer.launch({
  executablePath,
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", ...camera],
});
const result = { errors: [], foreign: [], answers: [] };
try {
  const page = await browser.newPage();
  page.on("console", (message) => {
    if (["error", "warn"].includes(message.type())) result.errors.push(message.text());
  });
  page.on("pageerror", (error) => result.errors.push(String(error)));
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(origin) && !/^(data|blob):/.test(url)) result.foreign.push(url);
  });
  const [width, height] = SIZES.wide;
  await page.setViewport({ width, height });
  await page.goto(`${origin}/`);
  const text = (id) => page.$eval(`#${id}`, (element) => element.textContent);
  await page.waitForFunction(
    () => !document.querySelector("#camera").disabled || document.querySelector("#message").textContent,
    { timeout: 120_000 },
  );
  result.engine = await text("engine");
  result.message = await text("message");
  if (!result.message) {
    if (values.screenshots) await page.screenshot({ path: join(values.screenshots, "welcome.png") });
    if (values.video) await (await page.$("#file")).uploadFile(values.video);
    else await page.click("#camera");
    const start = performance.now();
    while (performance.now() - start < 1000 * Number(values.seconds)) {
      const answer = await text("answer");
      const seconds = (performance.now() - start) / 1000;
      if (answer && answer !== result.answers.at(-1)?.[1]) result.answers.push([seconds, answer]);
      await new Promise((done) => setTimeout(done, 50));
    }
    result.message = await text("message");
    result.figures = await text("figures");
    for (const [name, [width, height]] of Object.entries(values.screenshots ? SIZES : {})) {
      await page.setViewport({ width, height });
      await new Promise((done) => setTimeout(done, 500));
      const path = join(values.screenshots, `${name}.png`);
      await page.screenshot({ path, fullPage: name === "narrow" });
      result[`overflow_${name}`] = await page.evaluate(
        () => document.documentElement.scrollWidth > innerWidth,
      );
    }
  }
} finally {
  await browser.close();
  server.close();
}
console.log(JSON.stringify(result));
