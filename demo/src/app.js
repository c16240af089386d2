// The page: runs the network on a camera or a video and shows the predictions.

import { Chart } from "./chart.js";
import { Network, Problem, readDescription } from "./model.js";
import { Meter, Picker } from "./picker.js";
import { Pixels } from "./pixels.js";
import { Smoother } from "./smoother.js";

const TOP = 5; // classes with their scores
const KNOWN = 24; // classes to list before the first prediction
const at = (id) => document.getElementById(id);
const video = at("video");
const chart = new Chart(at("chart"));

let network;
let pixels;
let picker;
let smoother;
let canvas;
let given = new Meter();
let seen = new Meter();
let busy = false;
let dropped = 0;
let milliseconds = 0;
let run = 0; // counts starts and stops; results of earlier runs are ignored
let cameraIsWanted = false;

function say(text, isError = false) {
  at("message").textContent = text;
  at("message").classList.toggle("error", isError);
}

function percent(score) {
  return `${Math.round(100 * score)}%`;
}

function showAnswer({ answer, scores }) {
  const { labels } = network.description;
  at("answer").textContent = labels[answer];
  at("score").textContent = percent(scores[answer]);
  at("bar").style.width = percent(scores[answer]);
  const best = scores.map((score, k) => [score, k]).sort((a, b) => b[0] - a[0]);
  at("classes").replaceChildren(
    ...best.slice(0, TOP).map(([score, k]) => {
      const item = document.createElement("li");
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = labels[k];
      name.title = labels[k];
      const value = document.createElement("span");
      value.textContent = percent(score);
      const bar = document.createElement("i");
      bar.style.width = percent(score);
      bar.style.background = chart.color(k);
      item.append(name, value, bar);
      return item;
    }),
  );
}

function showFigures() {
  at("milliseconds").textContent = milliseconds ? `${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms` : "–";
  at("seen").textContent = seen.rate ? `${seen.rate.toFixed(1)} of ${network.description.rate.toPrecision(2)}` : "–";
  at("given").textContent = given.rate ? given.rate.toFixed(0) : "–";
  at("dropped").textContent = dropped;
}

/** Resets all state before input that does not continue the previous one. */
function forget() {
  network.reset();
  smoother.reset();
  picker = new Picker(network.description.rate);
  chart.clear();
  given = new Meter();
  seen = new Meter();
  at("answer").textContent = at("score").textContent = "";
  at("bar").style.width = "0";
  at("classes").replaceChildren();
}

function grab() {
  const { videoWidth: width, videoHeight: height } = video;
  canvas ??= document.createElement("canvas");
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(video, 0, 0);
  return context.getImageData(0, 0, width, height);
}

async function see(thisRun) {
  busy = true;
  try {
    const start = performance.now();
    const logits = await network.push(pixels.prepare(grab()));
    if (thisRun !== run) return;
    const took = performance.now() - start;
    milliseconds = milliseconds ? 0.8 * milliseconds + 0.2 * took : took;
    const now = performance.now() / 1000;
    seen.add(now);
    smoother.patience = at("smooth").checked ? 2 : 1;
    const shown = smoother.update(logits);
    if (!shown.scores.every(Number.isFinite)) throw new Error("its scores are not finite");
    chart.add(now, shown.scores);
    showAnswer(shown);
  } catch (error) {
    if (thisRun === run) {
      stop();
      say(`The network failed: ${error.message}`, true);
    }
  } finally {
    busy = false;
  }
}

function follow() {
  const thisRun = run;
  const fromFile = !video.srcObject;
  const everyFrame = (now, metadata) => {
    if (thisRun !== run) return;
    next();
    given.add(now / 1000);
    if (!picker.pick(fromFile ? metadata.mediaTime : now / 1000)) return;
    if (busy) dropped += 1;
    else see(thisRun);
  };
  const next = () => {
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(everyFrame);
    else requestAnimationFrame((now) => everyFrame(now, { mediaTime: video.currentTime }));
  };
  const draw = () => {
    if (thisRun !== run) return;
    chart.draw(performance.now() / 1000);
    showFigures();
    requestAnimationFrame(draw);
  };
  next();
  draw();
}

function stop() {
  run += 1;
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  if (video.src) URL.revokeObjectURL(video.src);
  video.removeAttribute("src");
  video.load();
  at("stage").className = "idle";
  at("stop").hidden = true;
}

async function start(open) {
  stop();
  const thisRun = run;
  forget();
  dropped = 0;
  say("");
  await open();
  await video.play();
  if (thisRun !== run) return;
  at("stage").className = "";
  at("stop").hidden = false;
  follow();
}

const CAMERA_PROBLEMS = {
  NotAllowedError: "This page is not allowed to use the camera: allow it in the browser.",
  NotFoundError: "No camera found: connect one, or drop a video on the page.",
  NotReadableError: "Another program is using the camera: close it and try again.",
};

async function startCamera() {
  cameraIsWanted = true;
  if (!navigator.mediaDevices) {
    say("Browsers allow the camera only on pages from https or localhost.", true);
    return;
  }
  try {
    await start(async () => {
      const wanted = { video: { width: { ideal: 640 }, height: { ideal: 480 } }, audio: false };
      video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
      video.srcObject.getVideoTracks()[0].addEventListener("ended", () => {
        stop();
        say("The camera was disconnected; waiting for it.");
      });
    });
  } catch (error) {
    stop();
    say(CAMERA_PROBLEMS[error.name] ?? `Cannot open the camera: ${error.message}`, true);
  }
}

async function startFile(file) {
  cameraIsWanted = false;
  try {
    await start(() => {
      video.src = URL.createObjectURL(file);
    });
  } catch {
    stop();
    say(`This browser cannot play ${file.name}: try an H.264 .mp4 file.`, true);
  }
}

function connect() {
  at("camera").addEventListener("click", startCamera);
  at("stop").addEventListener("click", () => {
    cameraIsWanted = false;
    stop();
    say("");
  });
  at("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) startFile(target.files[0]);
    target.value = "";
  });
  navigator.mediaDevices?.addEventListener("devicechange", () => {
    if (cameraIsWanted && at("stage").className === "idle") startCamera();
  });
  video.addEventListener("ended", () => {
    run += 1;
    say("The video has ended.");
    at("stage").className = "ended";
  });
  const stage = at("stage");
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.add("over");
    });
  }
  for (const name of ["dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.remove("over");
    });
  }
  document.addEventListener("drop", ({ dataTransfer }) => {
    if (dataTransfer.files[0]) startFile(dataTransfer.files[0]);
  });
  at("camera").disabled = at("file").disabled = false;
}

async function main() {
  const description = await readDescription();
  const { labels, backbone, frames, rate, cropSize } = description;
  at("about").textContent = `${backbone}, ${labels.length} classes, ${cropSize} px; trained with ${frames} frames at ${rate.toPrecision(2)} per second`;
  at("known").textContent = `Classes: ${labels.slice(0, KNOWN).join(", ")}${labels.length > KNOWN ? `, and ${labels.length - KNOWN} more` : ""}.`;
  network = await Network.open(description, (share) => {
    at("engine").textContent = `Loading the network: ${percent(share)}`;
  });
  pixels = new Pixels(description);
  smoother = new Smoother(frames);
  picker = new Picker(rate);
  at("engine").textContent = `Running on ${network.engine}.`;
  if (network.engine.endsWith("one thread")) {
    at("engine").textContent += globalThis.crossOriginIsolated
      ? ""
      : " Using more threads requires a server that sends Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.";
  }
  await network.push(new Uint8Array(cropSize * cropSize * 3)); // the first frame takes longest
  network.reset();
  chart.draw(0);
  connect();
}

main().catch((error) => {
  at("about").textContent = "";
  say(error instanceof Problem ? error.message : `Internal error of this page: ${error.message}`, true);
  if (!(error instanceof Problem)) console.error(error);
});
