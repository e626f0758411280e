// Classify, with the model of this folder, the images that the user drops on the page or chooses.

import { showPoints } from "./points.mjs";
import { resizeLikePython } from "./resize.mjs";

const TOP = 5;
const LIBRARY = "@huggingface/transformers"; // its address is in index.html
const PRECISIONS = { q8: "int8", fp32: "float32" };
const DEVICES = { webgpu: "WebGPU", wasm: "WebAssembly" };

const drop = document.querySelector("#drop");
const input = drop.querySelector("input");
const status = document.querySelector("#status");
const progress = document.querySelector("progress");
const precision = document.querySelector("#precision");
const results = document.querySelector("#results");

let transformers;
let model; // {classifier, dtype, device}
let queue = Promise.resolve(); // models and images take turns

function report(state, text) {
  document.body.dataset.state = state;
  status.textContent = text;
  status.classList.toggle("wrong", state === "error");
  progress.hidden = state !== "loading";
}

async function loadLibrary() {
  const address = import.meta.resolve(LIBRARY);
  try {
    transformers = await import(LIBRARY);
  } catch {
    throw new Error(`transformers.js cannot be loaded from ${address}. README.md says how to use a copy of your own.`);
  }
  const { env } = transformers;
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  env.useBrowserCache = false; // it would keep the files of an earlier export
  env.fetch = (file, options) => fetch(file, { ...options, cache: "no-cache" });
  if (new URL(address).origin === location.origin) {
    const runtime = new URL("ort-wasm-simd-threaded.asyncify", address).href;
    env.backends.onnx.wasm.wasmPaths = { mjs: `${runtime}.mjs`, wasm: `${runtime}.wasm` };
  }
}

async function hasWebGpu() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

function showProgress({ status: kind, file, loaded, total }) {
  if (kind === "progress" && file.endsWith(".onnx")) {
    progress.max = total;
    progress.value = loaded;
    status.textContent = `Loading ${file}, ${megabytes(loaded)} of ${megabytes(total)} MB`;
  }
}

async function loadModel(dtype, device) {
  report("loading", "Loading the model …");
  progress.removeAttribute("value");
  await model?.classifier.dispose();
  model = undefined;
  const options = { dtype, device, progress_callback: showProgress };
  const classifier = await transformers.pipeline("image-classification", "./", options);
  model = { classifier: resizeLikePython(classifier), dtype, device };
  report("ready", `Ready: ${PRECISIONS[dtype]} with ${DEVICES[device]}`);
}

async function load(dtype, device) {
  try {
    await loadModel(dtype, device);
  } catch (error) {
    if (device !== "webgpu") {
      throw error;
    }
    console.warn("WebGPU cannot run the model:", error);
    await loadModel(dtype, "wasm");
  }
}

// Return the pixels of an image file, turned as its camera was; what is transparent is white.
async function readImage(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return transformers.RawImage.fromCanvas(canvas);
}

async function classify(file) {
  if (!model) {
    return; // the page says why
  }
  const card = addCard(file);
  const facts = card.querySelector("p");
  let image;
  try {
    image = await readImage(file);
  } catch {
    card.querySelector("img").remove();
    facts.textContent = "This file is no image that the browser can read.";
    facts.className = "wrong";
    return;
  }
  await new Promise((resolve) => setTimeout(resolve, 20)); // let the browser draw before it is busy
  const { classifier, dtype, device } = model;
  try {
    const start = performance.now();
    const classes = await classifier(image, { top_k: TOP });
    const milliseconds = Math.round(performance.now() - start);
    facts.textContent =
      `${image.width} × ${image.height} pixels, ${milliseconds} ms with ${PRECISIONS[dtype]} and ${DEVICES[device]}`;
    card.querySelector("ol").replaceChildren(...classes.map(classRow));
    offerPoints(card, classifier, image);
  } catch (error) {
    facts.textContent = `The model failed: ${error.message}`;
    facts.className = "wrong";
  }
}

function addCard(file) {
  const card = document.createElement("article");
  card.innerHTML = '<img alt=""><div><h2></h2><p>Classifying …</p><ol></ol></div>';
  card.querySelector("h2").textContent = file.name;
  const picture = card.querySelector("img");
  picture.src = URL.createObjectURL(file);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  results.prepend(card);
  return card;
}

// Let the user see where the model samples, if its file returns that.
function offerPoints(card, classifier, image) {
  const settings = classifier.model.config.sampling_points;
  if (!settings) {
    return;
  }
  const details = document.createElement("details");
  details.innerHTML = "<summary>Where it samples: click into the image</summary>";
  details.addEventListener(
    "toggle",
    () =>
      enqueue(async () => {
        if (model?.classifier === classifier) {
          await showPoints(details, classifier, image, settings);
        } else {
          details.append("Another model has been chosen since; drop the image again.");
        }
      }),
    { once: true },
  );
  card.append(details);
}

function classRow({ label, score }) {
  const row = document.createElement("li");
  row.innerHTML = "<span></span><output></output><i></i>";
  row.querySelector("span").textContent = label;
  row.querySelector("output").textContent = `${(100 * score).toFixed(1)} %`;
  row.querySelector("i").style.setProperty("--share", score);
  row.dataset.score = score;
  return row;
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
}

function enqueue(task) {
  queue = queue.then(task).catch((error) => {
    console.error(error);
    report("error", error.message);
  });
}

function take(files) {
  for (const file of files) {
    enqueue(() => classify(file));
  }
}

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser opens the file
    drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files));
input.addEventListener("change", () => {
  take([...input.files]);
  input.value = "";
});
precision.addEventListener("change", () => {
  const dtype = precision.value;
  enqueue(async () => load(dtype, (await hasWebGpu()) ? "webgpu" : "wasm"));
});

enqueue(async () => {
  await loadLibrary();
  precision.disabled = false;
  const device = (await hasWebGpu()) ? "webgpu" : "wasm";
  precision.value = device === "webgpu" ? "fp32" : "q8"; // which transformers.js itself takes
  await load(precision.value, device);
});
