// The exported folder that contains this page: reads its description and runs its graph.

const VERSION = 2; // newest version of exported folders that this page supports

/** An error that the user can fix, described in one line. */
export class Problem extends Error {}

export async function readDescription() {
  let config;
  try {
    const response = await fetch("config.json");
    if (!response.ok) throw new Error(`the server returned ${response.status}`);
    config = await response.json();
  } catch (error) {
    throw new Problem(`Cannot read config.json next to this page (${error.message}): serve the whole exported folder.`);
  }
  const exported = config.export;
  if (typeof exported !== "object" || exported === null) {
    throw new Problem("This is not an exported folder: create one with tsm export --streaming --browser.");
  }
  if (!Number.isInteger(exported.version) || exported.version > VERSION) {
    throw new Problem(
      `This folder has export version ${exported.version}, but this page supports versions up to ${VERSION}: export it again.`,
    );
  }
  if (exported.kind !== "stream") {
    throw new Problem("This folder was exported for whole clips, not for streams: use tsm export --streaming --browser.");
  }
  return {
    labels: exported.labels,
    title: document.title,
    backbone: config.architecture.backbone,
    frames: config.architecture.num_segments,
    rate: config.preprocessing.frame_rate,
    shortSide: config.preprocessing.short_side,
    fixedRatio: config.preprocessing.protocol.startsWith("paddle"),
    cropSize: exported.input.shape[1],
    state: exported.state,
  };
}

/** Returns the bytes of the graph; reports the share that has been loaded, 0 to 1. */
async function fetchGraph(onProgress) {
  const response = await fetch("model.onnx");
  if (!response.ok) throw new Problem(`Cannot read model.onnx next to this page: the server returned ${response.status}.`);
  const total = Number(response.headers.get("Content-Length"));
  const parts = [];
  let size = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    if (total) onProgress(Math.min(1, size / total));
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function hasWebGPU() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

export class Network {
  constructor(ort, session, description, engine) {
    Object.assign(this, { ort, session, description, engine });
    this.reset();
  }

  static async open(description, onProgress) {
    if (typeof WebAssembly !== "object") {
      throw new Problem("This browser has no WebAssembly: use a newer one.");
    }
    const graph = await fetchGraph(onProgress);
    if (await hasWebGPU()) {
      try {
        const ort = await import("./ort/ort.webgpu.bundle.min.mjs");
        const session = await ort.InferenceSession.create(graph, { executionProviders: ["webgpu"] });
        return new Network(ort, session, description, "WebGPU");
      } catch (error) {
        console.info(`WebGPU cannot run this network (${error.message}); using WebAssembly instead.`);
      }
    }
    let ort;
    try {
      ort = await import("./ort/ort.wasm.bundle.min.mjs");
    } catch (error) {
      throw new Problem(`Cannot load ONNX Runtime from the folder ort/ next to this page (${error.message}).`);
    }
    // Threads share memory, which browsers allow only for cross-origin isolated pages.
    const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    ort.env.wasm.numThreads = threads;
    try {
      const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
      const many = threads === 1 ? "one thread" : `${threads} threads`;
      return new Network(ort, session, description, `WebAssembly with SIMD, ${many}`);
    } catch (error) {
      throw new Problem(`This browser cannot run the network: ${error.message.split("\n")[0]}`);
    }
  }

  /** Forgets all frames. */
  reset() {
    const { inputs, shapes } = this.description.state;
    this.state = inputs.map((_, i) => {
      const shape = shapes.onnx[i];
      return new this.ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b)), shape);
    });
  }

  /** Returns the logits of the next frame, RGB `[S, S, 3]`. */
  async push(pixels) {
    const { state, cropSize } = this.description;
    const feeds = { frame: new this.ort.Tensor("uint8", pixels, [1, cropSize, cropSize, 3]) };
    state.inputs.forEach((name, i) => {
      feeds[name] = this.state[i];
    });
    const results = await this.session.run(feeds);
    this.state = state.outputs.map((name) => results[name]);
    return results.logits.data;
  }
}
