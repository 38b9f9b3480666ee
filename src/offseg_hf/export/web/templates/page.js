// What is seen: a photo comes in, the worker looks at it, and its classes are shown, named and saved.

import { labelPng } from "./png.js";

const LONGEST_SHOWN = 2048; // pixels of a side on the screen; the label map always has those of the photo
const DIMMED = 50; // of 255, the colors of classes beside those that are pointed at
const STEP = 12; // pixels on the screen that an arrow key moves

const $ = id => document.getElementById(id);
const settings = JSON.parse($("settings").textContent);
const { names, palette } = settings;
const worker = new Worker("worker.js", { type: "module" });

let network = "waiting"; // then loading, ready or failed
let current = null; // {id, blob, name, bitmap, result}
let pinned = null, pointed = null; // classes
let lastId = 0;

// -- the network -----------------------------------------------------------------------------------------------------

function load() {
  if (network !== "waiting") return;
  network = "loading";
  worker.postMessage({ settings });
  say("Starting");
}

worker.onmessage = ({ data }) => {
  if (data.error) return fail(data);
  if (data.id && data.id !== current?.id) return undefined; // another photo has come since
  if (data.progress) return showDownload(...data.progress);
  if (data.ready) return ready(data);
  if (data.result) return show(data.result);
  if (data.step) say(`${data.step} …`, data.share);
  return undefined;
};
worker.onerror = event => fail({ error: event.message || "The script of the network cannot be loaded" });

function ready({ ready: backend, threads }) {
  network = "ready";
  const where = backend === "webgpu" ? "the graphics processor (WebGPU)" : `the processor (WebAssembly, ${threads === 1 ? "1 thread" : `${threads} threads`})`;
  $("runs").textContent = `The network runs on ${where} of this device.`;
  document.documentElement.dataset.backend = backend;
  if (!current) say("Ready.");
}

function showDownload(loaded, total) {
  const megabytes = bytes => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
  say(`Downloading the network, once: ${megabytes(loaded)} of ${megabytes(total)} MB`, loaded / total);
}

function fail({ error, id }) {
  if (id && id !== current?.id) return;
  if (!id) network = "failed";
  say("");
  $("problem").textContent = `${error}.`;
  $("problem").hidden = false;
  $("stage").classList.remove("busy");
}

function say(text, share) {
  $("status").textContent = text;
  $("progress").hidden = share === undefined;
  if (share !== undefined) $("progress").value = share;
}

// -- photos come in --------------------------------------------------------------------------------------------------

async function take(blob, name = "photo") {
  load();
  $("problem").hidden = true;
  const id = ++lastId;
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    current = { id };
    return fail({ error: `This browser cannot read ${name} as an image`, id });
  }
  if (id !== lastId) return bitmap.close();
  current = { id, name: name.replace(/\.[^.]*$/, ""), result: null };
  $("main").dataset.state = "photo";
  $("empty").hidden = true;
  $("picture").hidden = false;
  $("stage").classList.add("busy");
  drawPhoto(bitmap);
  bitmap.close();
  showLegend();
  if (network !== "failed") {
    if (network === "ready") say("Looking …", 0);
    worker.postMessage({ id, photo: blob });
  } else {
    fail({ error: "The network could not be loaded; reload the page to try again" });
  }
  return undefined;
}

function drawPhoto(bitmap) {
  const shrink = Math.min(1, LONGEST_SHOWN / Math.max(bitmap.width, bitmap.height));
  for (const canvas of [$("photo"), $("overlay")]) {
    canvas.width = Math.max(1, Math.round(bitmap.width * shrink));
    canvas.height = Math.max(1, Math.round(bitmap.height * shrink));
    canvas.style.setProperty("--ratio", canvas.width / canvas.height);
  }
  const context = $("photo").getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, $("photo").width, $("photo").height);
  pinned = pointed = null;
  hideTip();
}

const pictureOf = items => [...items ?? []].find(item => item.type.startsWith("image/"));

$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) take(file, file.name);
  $("file").value = "";
};
$("stage").onclick = event => {
  if ($("main").dataset.state === "empty") $("file").click();
  event.stopPropagation();
};
$("example").onclick = async () => {
  const response = await fetch("example.png").catch(() => null);
  if (response?.ok) take(await response.blob(), "example.png");
  else fail({ error: "The example cannot be fetched", id: current?.id });
};
document.addEventListener("paste", event => {
  const item = pictureOf(event.clipboardData?.items);
  if (!item) return;
  event.preventDefault();
  take(item.getAsFile(), "pasted.png");
});
document.addEventListener("dragover", event => {
  event.preventDefault();
  $("drop").hidden = false;
});
document.addEventListener("dragleave", event => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", event => {
  event.preventDefault();
  $("drop").hidden = true;
  const file = pictureOf(event.dataTransfer.files) ?? event.dataTransfer.files[0];
  if (file) take(file, file.name);
});

// -- the camera ------------------------------------------------------------------------------------------------------

let stream = null, facing = "environment";
$("camera").hidden = !navigator.mediaDevices?.getUserMedia;
$("camera").onclick = async () => {
  load();
  try {
    await startCamera();
    $("viewfinder").showModal();
  } catch (error) {
    const reason = error.name === "NotAllowedError" ? "The browser was told not to allow it" : "There is none, or another program uses it";
    fail({ error: `No picture from the camera: ${reason}`, id: current?.id });
  }
};
$("turn").onclick = async () => {
  facing = facing === "user" ? "environment" : "user";
  await startCamera().catch(() => {});
};
$("close-camera").onclick = () => $("viewfinder").close();
$("viewfinder").onclose = stopCamera;
$("take").onclick = () => {
  const video = $("video"), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => take(blob, "camera.png"), "image/png");
  $("viewfinder").close();
};

async function startCamera() {
  stopCamera();
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: facing, width: { ideal: 1920 } } });
  $("video").srcObject = stream;
  await $("video").play();
}

function stopCamera() {
  stream?.getTracks().forEach(track => track.stop());
  stream = null;
}

// -- the label map ---------------------------------------------------------------------------------------------------

function show(result) {
  current.result = result;
  $("stage").classList.remove("busy");
  const parts = [`${result.width} × ${result.height} pixels in ${(result.milliseconds / 1000).toFixed(1)} s`];
  if (result.windows > 1) parts.push(`${result.windows} windows`);
  if (!result.isExact) {
    const [height, width] = settings.model.size;
    parts.push(`stretched to ${width} × ${height}, the only size of this network: for photos of another shape the result is not that of the model in Python`);
  }
  say(`${parts.join(", ")}.`);
  showLegend();
  paint();
}

/** Draw the colors of the classes, those that are not pointed at more faintly. */
function paint() {
  const { labels, width, height } = current.result;
  const canvas = $("overlay"), context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const colors = new Uint32Array(image.data.buffer), chosen = pointed ?? pinned;
  const table = Uint32Array.from(palette, ([red, green, blue], label) =>
    ((chosen === null || chosen === label ? 255 : DIMMED) << 24) | (blue << 16) | (green << 8) | red);
  const columns = Int32Array.from({ length: canvas.width }, (_, x) => Math.floor((x + 0.5) * width / canvas.width));
  for (let y = 0, i = 0; y < canvas.height; y++) {
    const row = Math.floor((y + 0.5) * height / canvas.height) * width;
    for (let x = 0; x < canvas.width; x++, i++) colors[i] = table[labels[row + columns[x]]];
  }
  context.putImageData(image, 0, 0);
}

function percent(share) {
  return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

function shareOf(label) {
  const { counts, width, height } = current.result;
  return counts[label] / (width * height);
}

function css([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function swatch(label) {
  const made = element("span", "swatch");
  made.style.background = css(palette[label]);
  return made;
}

function showLegend() {
  const result = current?.result;
  const present = result ? [...result.counts.keys()].filter(label => result.counts[label]) : [];
  present.sort((one, other) => result.counts[other] - result.counts[one]);
  $("legend").replaceChildren(...present.map(legendEntry));
  $("legend-empty").hidden = present.length > 0;
  for (const button of document.querySelectorAll(".needs-result")) button.disabled = !result;
  if (!result) $("overlay").getContext("2d").clearRect(0, 0, $("overlay").width, $("overlay").height);
  $("show-all").hidden = pinned === null;
}

function legendEntry(label) {
  const item = document.createElement("li"), button = element("button", ""), bar = element("span", "bar"), filled = document.createElement("i");
  button.type = "button";
  button.dataset.label = label;
  button.setAttribute("aria-pressed", "false");
  filled.style.width = `${100 * shareOf(label)}%`;
  filled.style.background = css(palette[label]);
  bar.append(filled);
  button.append(swatch(label), element("span", "name", names[label]), element("span", "share", percent(shareOf(label))), bar);
  button.onclick = () => pin(pinned === label ? null : label);
  button.onpointerenter = event => event.pointerType === "mouse" && point(label);
  button.onpointerleave = () => point(null);
  item.append(button);
  return item;
}

/** Show one class, until another one is chosen. */
function pin(label) {
  pinned = label;
  pointed = null;
  for (const button of $("legend").querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.label) === label));
  $("show-all").hidden = label === null;
  paint();
}

/** Show one class while it is pointed at in the legend. */
function point(label) {
  if (label === pointed || !current?.result) return;
  pointed = label;
  paint();
}

$("show-all").onclick = () => pin(null);
$("opacity").oninput = () => {
  $("overlay").style.opacity = $("opacity").value / 100;
  $("opacity-value").textContent = `${$("opacity").value} %`;
};

// -- naming what is pointed at ---------------------------------------------------------------------------------------

let spot = null; // {x, y}: of the pointer that the keys move, on the screen

/** Name the class at a place of the picture, in pixels of the screen; returns it. */
function nameAt(x, y) {
  const box = $("overlay").getBoundingClientRect(), result = current?.result;
  if (!result || x < 0 || y < 0 || x >= box.width || y >= box.height) return hideTip();
  const column = Math.min(Math.floor(x * result.width / box.width), result.width - 1);
  const row = Math.min(Math.floor(y * result.height / box.height), result.height - 1);
  const label = result.labels[row * result.width + column], tip = $("tip");
  tip.replaceChildren(swatch(label), element("b", "", names[label]), element("span", "faint", percent(shareOf(label))));
  tip.hidden = false;
  tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth))}px`;
  tip.style.top = `${y > tip.offsetHeight + 16 ? y - tip.offsetHeight - 12 : y + 22}px`;
  for (const button of $("legend").querySelectorAll("button")) button.classList.toggle("current", Number(button.dataset.label) === label);
  return label;
}

function hideTip() {
  $("tip").hidden = $("cursor").hidden = true;
  spot = null;
  for (const button of $("legend").querySelectorAll(".current")) button.classList.remove("current");
  return null;
}

function placeOf(event) {
  const box = $("overlay").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

$("picture").onpointermove = event => {
  $("cursor").hidden = true;
  nameAt(...placeOf(event));
};
$("picture").onpointerdown = $("picture").onpointermove;
$("picture").onpointerleave = event => event.pointerType === "mouse" && hideTip();
$("picture").onclick = event => {
  const label = nameAt(...placeOf(event));
  if (label !== null && event.detail === 2) pin(pinned === label ? null : label);
};
$("picture").onblur = hideTip;
$("picture").onkeydown = event => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const box = $("overlay").getBoundingClientRect();
  if (event.key === "Escape") {
    hideTip();
    if (current?.result) pin(null);
  } else if (event.key === "Enter" && spot) {
    const label = nameAt(spot.x, spot.y);
    pin(pinned === label ? null : label);
  } else if (moves[event.key] && current?.result) {
    event.preventDefault();
    const step = event.shiftKey ? 1 : STEP, [right, down] = moves[event.key];
    spot ??= { x: box.width / 2 - right * step, y: box.height / 2 - down * step };
    const within = (value, length) => Math.min(Math.max(value, 0), length - 1);
    spot = { x: within(spot.x + right * step, box.width), y: within(spot.y + down * step, box.height) };
    const { x, y } = spot, label = nameAt(x, y);
    $("cursor").hidden = false;
    $("cursor").style.left = `${x}px`;
    $("cursor").style.top = `${y}px`;
    $("spot").textContent = `${names[label]}, ${percent(shareOf(label))}`;
  }
};

// -- saving ----------------------------------------------------------------------------------------------------------

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

$("save-labels").onclick = async () => {
  const { name, result } = current;
  save(await labelPng(result.labels, result.width, result.height, palette), `${name}_labels.png`);
};
$("save-picture").onclick = () => {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d"), { name } = current;
  [canvas.width, canvas.height] = [$("photo").width, $("photo").height];
  context.drawImage($("photo"), 0, 0);
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage($("overlay"), 0, 0);
  canvas.toBlob(blob => save(blob, `${name}_overlay.png`), "image/png");
};

showLegend();
// Where the user saves data, the network is fetched with the first photo.
if (navigator.connection?.saveData) say("The network is downloaded with the first photo.");
else load();
