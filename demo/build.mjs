// Builds the page into the Python package, which carries it: `npm run build`.

import { copyFile, mkdir } from "node:fs/promises";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const target = process.argv[2] ?? path("../tsm_jax/exporting/page");

await mkdir(target, { recursive: true });
await build({
  entryPoints: [path("src/app.js")],
  outfile: `${target}/app.js`,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  // ONNX Runtime starts its threads from its own file, so it stays a file of its own.
  external: ["./ort/*"],
});
for (const name of ["index.html", "style.css"]) await copyFile(path(`src/${name}`), `${target}/${name}`);
