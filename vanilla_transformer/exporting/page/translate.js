// SPDX-License-Identifier: Apache-2.0
import { AutoModelForSeq2SeqLM, AutoTokenizer, env } from "./library/transformers.min.js";

const [text, translation, button, status] = ["text", "translation", "translate", "status"].map((id) =>
  document.getElementById(id),
);
const runtime = new URL("library/ort-wasm-simd-threaded", document.baseURI);
env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./";
// The library's cache would never notice another model at the same address; the browser's own does.
env.useBrowserCache = env.useWasmCache = false;

let tokenizer, model;

function show(message, isError = false) {
  status.textContent = message;
  status.classList.toggle("error", isError);
}

/** The greedy translation of a line, as long as the model's generation config allows. */
async function translate(line) {
  if (!line.trim()) return "";
  const inputs = tokenizer(line);
  const length = inputs.input_ids.dims[1];
  const longest = model.config.max_position_embeddings;
  if (length > longest) {
    throw new Error(`a line has ${length} tokens, and the model reads at most ${longest}: “${line.slice(0, 40)} …”`);
  }
  const beyond = model.generation_config.max_tokens_beyond_source ?? longest;
  const ids = await model.generate({ ...inputs, max_new_tokens: Math.min(length + beyond, longest - 1) });
  return tokenizer.batch_decode(ids, { skip_special_tokens: true })[0];
}

async function translateAll() {
  const lines = text.value.split("\n");
  const start = performance.now();
  translation.textContent = "";
  button.disabled = true;
  show("Translating …");
  try {
    for (const [i, line] of lines.entries()) {
      await new Promise((resume) => setTimeout(resume)); // the browser draws
      translation.textContent += (i ? "\n" : "") + (await translate(line));
    }
    show(`${((performance.now() - start) / 1000).toFixed(1)} s: greedy decoding`);
  } catch (error) {
    show(`Not translated: ${error.message}`, true);
  }
  button.disabled = false;
}

button.addEventListener("click", translateAll);
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !button.disabled) translateAll();
});

show("Loading the model …");
try {
  tokenizer = await AutoTokenizer.from_pretrained("model");
  model = await AutoModelForSeq2SeqLM.from_pretrained("model");
  button.disabled = false;
  show("Ready");
} catch (error) {
  show(`The model cannot be loaded: ${error.message}`, true);
}
