// The network and all arithmetic, off the page's thread. Messages in: {settings}, once, then {id, photo}; out: {progress},
// {ready}, {step}, {result} and {error}.

import { fetchAll, forgetOthers } from "./download.js";
import { AveragedWindows, countClasses, crop, resize, resizedSize, windowsOf } from "./protocol.js";

const STRIP = 64; // rows of a photo that are read at a time
const MOST_THREADS = 8;
const BACKENDS = ["webgpu", "wasm"];

let settings, opened;
let last = Promise.resolve();

self.onmessage = ({ data }) => {
  last = last.then(() => answer(data)).catch(error => self.postMessage({ error: error.message || String(error), id: data.id }));
};

async function answer(data) {
  if (data.settings) {
    settings = data.settings;
    opened = await open(await hasWebGpu() ? 0 : 1);
    self.postMessage({ ready: opened.backend, threads: opened.threads });
  } else {
    await segment(data.id, data.photo);
  }
}

// -- the network -----------------------------------------------------------------------------------------------------

async function hasWebGpu() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

/** Open the network in the first backend, from a place in BACKENDS on, that can run it. */
async function open(place) {
  const backend = BACKENDS[place], runtime = settings.runtime[backend];
  const file = ({ name, ...facts }, base) => ({ ...facts, url: new URL(name, base).href });
  const base = new URL(settings.runtime.base, self.location);
  const wanted = [file(runtime.binary, base), file(settings.model, self.location)];
  const [binary, model] = await fetchAll(wanted, (loaded, total) => self.postMessage({ progress: [loaded, total] }));
  self.postMessage({ step: "Starting the network" });
  try {
    const ort = await import(new URL(runtime.module, base));
    const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const session = await ort.InferenceSession.create(model, { executionProviders: [backend] });
    const [height, width] = settings.model.size;
    const run = async pixels => {
      const images = new ort.Tensor("float32", pixels, [1, 3, height, width]);
      const { logits } = await session.run({ pixel_values: images });
      const data = await logits.getData();
      logits.dispose();
      return { data, classes: logits.dims[1], height: logits.dims[2], width: logits.dims[3] };
    };
    // What a graphics processor cannot do, it says now.
    if (backend === "webgpu") await run(new Float32Array(3 * height * width));
    await forgetOthers(wanted, new URL(".", self.location).href);
    return { backend, threads, run };
  } catch (error) {
    if (place + 1 === BACKENDS.length) throw error;
    console.warn(`${backend} does not run this network: ${error.message}`);
    return open(place + 1);
  }
}

// -- a photo ---------------------------------------------------------------------------------------------------------

async function segment(id, photo) {
  if (!opened) throw new Error("The network is not there");
  const start = performance.now();
  const bitmap = await decode(photo);
  const { width, height } = bitmap;
  const [newHeight, newWidth] = resizedSize(height, width, settings.protocol);
  let prepared = { height: newHeight, width: newWidth, protocol: settings.protocol };
  prepared.windows = windowsOf(newHeight, newWidth, settings.protocol);
  const isExact = prepared.windows.every(window => fits(window));
  if (!isExact) prepared = stretched();
  const pixels = resize(rowsOf(bitmap), height, width, prepared.height, prepared.width);
  bitmap.close();

  const count = prepared.windows.length;
  let scores;
  for (const [index, window] of prepared.windows.entries()) {
    self.postMessage({ id, step: count > 1 ? `Looking, window ${index + 1} of ${count}` : "Looking", share: index / count });
    const logits = await opened.run(crop(pixels, prepared.height, prepared.width, window, prepared.protocol));
    scores ??= new AveragedWindows(logits.classes, prepared.height, prepared.width);
    scores.add(window, logits.data, logits.height, logits.width);
  }
  let told = 0;
  const labels = scores.labelMap(height, width, share => {
    if (share - told < 0.1) return;
    told = share;
    self.postMessage({ id, step: "Drawing the borders", share });
  });
  const counts = countClasses(labels, scores.classes);
  const milliseconds = performance.now() - start;
  self.postMessage({ id, result: { labels, counts, width, height, isExact, windows: count, milliseconds } }, [labels.buffer]);
}

async function decode(photo) {
  try {
    // Upright, and the colors as they are stored, as Python reads them.
    return await createImageBitmap(photo, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("This browser cannot read the file as an image");
  }
}

function fits([top, left, bottom, right]) {
  const [height, width] = settings.model.size;
  return bottom - top === height && right - left === width;
}

/** The photo as a whole, stretched to the only size that the network takes: for shapes that it was not exported for. */
function stretched() {
  const [height, width] = settings.model.size;
  const protocol = { ...settings.protocol, window_size: null };
  return { height, width, protocol, windows: [[0, 0, height, width]] };
}

/** Read a picture from top to bottom, a strip at a time: large photos are larger than canvases may be. */
function rowsOf(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, STRIP);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  let first = -1, data;
  return y => {
    const strip = y - (y % STRIP);
    if (strip !== first) {
      first = strip;
      context.clearRect(0, 0, bitmap.width, STRIP);
      context.drawImage(bitmap, 0, -strip);
      data = context.getImageData(0, 0, bitmap.width, STRIP).data;
    }
    return { data, start: (y - strip) * bitmap.width * 4 };
  };
}
