// Runs the student beside the page, so that the page goes on showing the video while the student computes.

import { env, InferenceSession, Tensor } from "./runtime/ort.wasm.min.mjs";

const runtime = (name) => new URL(`./runtime/${name}`, import.meta.url).href;
let session = null;

async function answer({ kind, model, frames, shape }) {
  if (kind === "open") {
    env.wasm.wasmPaths = {
      mjs: runtime("ort-wasm-simd-threaded.mjs"),
      wasm: runtime("ort-wasm-simd-threaded.wasm"),
    };
    env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    session = await InferenceSession.create(model, { executionProviders: ["wasm"] });
    return { threads: env.wasm.numThreads };
  }
  const { logits } = await session.run({ frames: new Tensor("uint8", frames, [1, ...shape]) });
  return { logits: Array.from(logits.data) };
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ id: data.id, value: await answer(data) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
