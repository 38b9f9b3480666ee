"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const { classes, images, metrics, comparison } = report;
const KINDS = Object.keys(report.pictures);
const PAGE_SIZE = 24;
const numImages = images.name.length;
const numClasses = classes.length;
const annotatedPixels = classes.reduce((sum, row) => sum + row.pixels, 0);

// -- making elements: text is always set as text

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && key !== "style") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const percent = (ratio, digits = 1) => (ratio === null || ratio === undefined ? "–" : `${(100 * ratio).toFixed(digits)}`);
const share = (ratio) => (ratio > 0 && ratio < 0.001 ? "< 0.1 %" : `${percent(ratio)} %`);
function signed(value, digits = 1) {
  if (value === null) return "–";
  const size = Math.abs(100 * value).toFixed(digits);
  return Number(size) === 0 ? size : `${value > 0 ? "+" : "−"}${size}`;
}
const direction = (value) => (value > 0 ? "better" : value < 0 ? "worse" : "");

function className(index) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = classes[index].color;
  return [element("span", { className: "class" }, swatch, classes[index].name)];
}

function bar(ratio) {
  if (ratio === null) return "–";
  const track = element("i");
  track.style.setProperty("--value", `${100 * ratio}%`);
  return element("span", { className: "bar" }, track, percent(ratio));
}

// A table of columns {title, tip, value, cell, number}, sorted by the column whose title is chosen.
function table(columns, rows, { limit = 25, sorted = null, ascending = false } = {}) {
  const place = element("div");
  let column = sorted === null ? null : columns[sorted];
  let isAscending = ascending;
  let shown = limit;
  let filter = () => true;

  function draw() {
    const chosen = rows.filter(filter);
    if (column) {
      chosen.sort((a, b) => {
        const [x, y] = [column.value(a), column.value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        const order = typeof x === "string" ? x.localeCompare(y) : x - y;
        return isAscending ? order : -order;
      });
    }
    const heads = columns.map((candidate) => {
      const button = element("button", { type: "button", title: candidate.tip ?? "" }, candidate.title);
      button.addEventListener("click", () => {
        isAscending = candidate === column ? !isAscending : !candidate.number;
        column = candidate;
        draw();
        place.querySelectorAll("th button")[columns.indexOf(candidate)].focus();
      });
      const head = element("th", { scope: "col", className: candidate.number ? "number" : "" }, button);
      if (candidate === column) head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
      return head;
    });
    const body = chosen.slice(0, shown).map((row) =>
      element("tr", {}, ...columns.map((candidate) =>
        element("td", { className: candidate.number ? "number" : "" }, ...[candidate.cell(row)].flat()))));
    const grid = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body));
    place.replaceChildren(element("div", { className: "scroll" }, grid));
    if (chosen.length > shown) {
      const more = element("button", { type: "button", className: "more" }, `Show all ${number(chosen.length)}`);
      more.addEventListener("click", () => { shown = Infinity; draw(); });
      place.append(more);
    }
    if (!chosen.length) place.append(element("p", { className: "faint" }, "Nothing to show."));
  }
  draw();
  return { place, filter: (keep) => { filter = keep; draw(); } };
}

// -- summary

function drawSummary() {
  byId("model").textContent = report.model.name;
  const { title, split, num_images } = report.dataset;
  byId("data-set").textContent = `${title}, ${split} · ${number(num_images)} images · ${numClasses} classes`;
  const tiles = [
    ["mIoU", "mIoU", "Mean over the classes of intersection over union"],
    ["mBoundaryIoU", "Boundary mIoU", "The same within the boundaries of the classes"],
    ["aAcc", "Pixel accuracy", "Share of the annotated pixels that are right"],
    ["mAcc", "Mean recall", "Mean over the classes of the share of their pixels that is found"],
    ["mPrecision", "Mean precision", "Mean over the classes of the share of predicted pixels that is right"],
    ["ECE", "Calibration error", "By how much the stated probability is off; smaller is better"],
  ];
  for (const [key, name, tip] of tiles) {
    const value = element("dd", {}, percent(metrics[key], key === "ECE" ? 1 : 2));
    const difference = comparison?.metrics[key]?.difference;
    if (difference !== undefined && difference !== null) {
      value.append(element("small", { className: direction(difference) }, signed(difference, 2)));
    }
    byId("summary").append(element("div", { title: tip }, element("dt", {}, `${name}, %`), value));
  }
}

// -- comparison

function interval(row, widest) {
  const place = (value) => `${50 + (48 * value) / widest}%`;
  const line = element("span", { className: `interval ${isSure(row) ? direction(row.difference) : "faint"}` });
  if (row.interval) {
    const range = element("i");
    range.style.left = place(row.interval[0]);
    range.style.right = `${50 - (48 * row.interval[1]) / widest}%`;
    line.append(range);
  }
  const dot = element("b");
  dot.style.left = place(row.difference);
  line.append(dot);
  return line;
}

function isSure(row) {
  return Boolean(row.interval) && (row.interval[0] > 0 || row.interval[1] < 0);
}

function comparisonColumns(name, get, rows) {
  const ends = rows.map(get).filter((row) => row.difference !== null)
    .flatMap((row) => [Math.abs(row.difference), ...(row.interval ?? []).map(Math.abs)]);
  const widest = Math.max(...ends, 1e-6);
  return [
    { title: `${name} before`, number: true, value: (row) => get(row).there, cell: (row) => percent(get(row).there) },
    { title: "now", number: true, value: (row) => get(row).here, cell: (row) => percent(get(row).here) },
    {
      title: "difference", number: true, value: (row) => get(row).difference,
      cell: (row) => element("span", { className: isSure(get(row)) ? direction(get(row).difference) : "" }, signed(get(row).difference, 2)),
    },
    {
      title: "95 % interval", tip: "Paired bootstrap over images", number: true,
      value: (row) => (get(row).interval ? get(row).interval[0] : null),
      cell: (row) => (get(row).interval ? `${signed(get(row).interval[0])} to ${signed(get(row).interval[1])}` : "–"),
    },
    { title: "", value: (row) => get(row).difference, cell: (row) => (get(row).difference === null ? "" : interval(get(row), widest)) },
  ];
}

function drawComparison() {
  if (!comparison) return;
  byId("comparison").hidden = false;
  document.querySelector('nav a[href="#comparison"]').hidden = false;
  const { better, worse, of } = comparison.images;
  const sure = comparison.classes.filter((row) => isSure(row.IoU));
  byId("comparison-text").textContent =
    `Before: ${comparison.model} (${comparison.with}). ${number(better)} of ${number(of)} images have a higher mIoU now, ` +
    `${number(worse)} a lower one. The IoU of ${sure.length} of ${numClasses} classes changed by more than the choice of images explains ` +
    "(colored): its interval leaves out 0. Of many classes some do so by chance.";
  const titles = { mIoU: "mIoU", mBoundaryIoU: "Boundary mIoU", aAcc: "Pixel accuracy" };
  const means = Object.entries(comparison.metrics).map(([key, row]) => ({ name: titles[key], ...row }));
  const name = { title: "metric", value: (row) => row.name, cell: (row) => row.name };
  byId("comparison-metrics").append(table([name, ...comparisonColumns("%", (row) => row, means)], means).place);
  const columns = [
    { title: "class", value: (row) => row.name, cell: (row) => className(row.id) },
    ...comparisonColumns("IoU", (row) => row.IoU, comparison.classes),
    {
      title: "Boundary IoU", number: true, value: (row) => row.BoundaryIoU.difference,
      cell: (row) => element("span", { className: isSure(row.BoundaryIoU) ? direction(row.BoundaryIoU.difference) : "" }, signed(row.BoundaryIoU.difference, 2)),
    },
  ];
  const size = ({ IoU }) => (IoU.difference === null ? -1 : isSure(IoU) + Math.abs(IoU.difference)); // at most 1 of these
  const rows = [...comparison.classes].sort((a, b) => size(b) - size(a));
  const place = table(columns, rows, { limit: 15 }).place;
  place.style.marginTop = "14px";
  byId("comparison-classes").append(place);
}

// -- classes

const rowTotals = classes.map((row) => row.pixels);
const pairs = [];
const cells = new Map();
for (let i = 0; i < report.confusions.length; i += 3) {
  const [label, prediction, pixels] = report.confusions.slice(i, i + 3);
  cells.set(label * numClasses + prediction, pixels);
  if (label !== prediction) pairs.push({ label, prediction, pixels, share: pixels / rowTotals[label] });
}
pairs.sort((a, b) => b.pixels - a.pixels);

function drawClasses() {
  const takenFor = new Map();
  for (const pair of pairs) {
    if (!takenFor.has(pair.label)) takenFor.set(pair.label, pair);
  }
  const rows = classes.map((row) => ({ ...row, share: annotatedPixels ? row.pixels / annotatedPixels : 0, taken: takenFor.get(row.id) ?? null }));
  const columns = [
    {
      title: "class", value: (row) => row.name,
      cell: (row) => showButton(className(row.id), { label: row.id }, `Images where ${row.name} is taken for another class`),
    },
    { title: "of pixels", number: true, tip: "Share of the annotated pixels", value: (row) => row.share, cell: (row) => share(row.share) },
    { title: "IoU", number: true, tip: "Intersection over union", value: (row) => row.IoU, cell: (row) => bar(row.IoU) },
    { title: "Boundary IoU", number: true, tip: "Intersection over union of the boundaries", value: (row) => row.BoundaryIoU, cell: (row) => bar(row.BoundaryIoU) },
    { title: "recall", number: true, tip: "Share of its pixels that is found", value: (row) => row.Recall, cell: (row) => percent(row.Recall) },
    { title: "precision", number: true, tip: "Share of the pixels predicted so that is right", value: (row) => row.Precision, cell: (row) => percent(row.Precision) },
    {
      title: "most taken for", value: (row) => (row.taken ? row.taken.share : null), tip: "The class that most of its lost pixels go to",
      cell: (row) => (row.taken ? [...className(row.taken.prediction), ` ${share(row.taken.share)}`] : "–"),
    },
  ];
  const made = table(columns, rows, { sorted: 2, ascending: true });
  byId("class-table").append(made.place);
  byId("class-search").addEventListener("input", (event) => {
    const text = event.target.value.toLowerCase();
    made.filter((row) => row.name.toLowerCase().includes(text));
  });
}

function showButton(content, filter, tip) {
  const button = element("button", { type: "button", className: "link", title: tip }, ...content);
  button.addEventListener("click", () => showImages(filter));
  return button;
}

// -- confusions

function drawPairs() {
  const columns = [
    {
      title: "annotation → prediction", value: (row) => classes[row.label].name,
      cell: (row) => showButton([...className(row.label), " → ", ...className(row.prediction)], row, "Images where this happens"),
    },
    { title: "of the class", number: true, tip: "Share of the pixels of the annotated class", value: (row) => row.share, cell: (row) => share(row.share) },
    { title: "of all pixels", number: true, tip: "Share of all annotated pixels", value: (row) => row.pixels, cell: (row) => share(row.pixels / annotatedPixels) },
  ];
  byId("pair-table").append(table(columns, pairs, { limit: 15, sorted: 2 }).place);
}

function drawMatrix() {
  const canvas = byId("matrix");
  const context = canvas.getContext("2d");
  let cursor = null;
  let size = 1;
  let margin = 0;

  function draw() {
    const width = canvas.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    context.font = "11px system-ui, sans-serif";
    const longest = Math.max(...classes.map((row) => context.measureText(row.name).width));
    const namesFit = (width - longest) / numClasses >= 13 && longest < width / 3;
    margin = namesFit ? longest + 8 : 0;
    size = (width - margin) / numClasses;
    canvas.width = width * ratio;
    canvas.height = width * ratio;
    canvas.style.height = `${width}px`;
    context.scale(ratio, ratio);
    context.fillStyle = color("--track");
    context.fillRect(margin, margin, width, width);
    const [right, wrong] = [color("--accent"), color("--bad")];
    for (const [cell, pixels] of cells) {
      const [row, column] = [Math.floor(cell / numClasses), cell % numClasses];
      context.globalAlpha = 0.05 + 0.95 * (pixels / rowTotals[row]) ** 0.4;
      context.fillStyle = row === column ? right : wrong;
      const gap = size > 8 ? 1 : 0;
      context.fillRect(margin + column * size, margin + row * size, size - gap, size - gap);
    }
    context.globalAlpha = 1;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = color("--faint");
    context.textBaseline = "middle";
    if (margin) {
      classes.forEach((row, index) => {
        const middle = margin + (index + 0.5) * size;
        context.textAlign = "right";
        context.fillText(row.name, margin - 5, middle);
        context.save();
        context.translate(middle, margin - 5);
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(row.name, 0, 0);
        context.restore();
      });
    }
    if (cursor) {
      const [row, column] = cursor;
      context.strokeStyle = color("--ink");
      context.lineWidth = 1.5;
      context.strokeRect(margin + column * size - 1, margin + row * size - 1, size + 2, size + 2);
      if (size < 8) {
        context.globalAlpha = 0.25;
        context.fillStyle = color("--ink");
        context.fillRect(margin, margin + (row + 0.5) * size, width, 1);
        context.fillRect(margin + (column + 0.5) * size, margin, 1, width);
        context.globalAlpha = 1;
      }
    }
  }

  function move(row, column) {
    const clamp = (value) => Math.min(Math.max(value, 0), numClasses - 1);
    cursor = [clamp(row), clamp(column)];
    draw();
    const [label, prediction] = cursor;
    const pixels = cells.get(label * numClasses + prediction) ?? 0;
    const ofClass = rowTotals[label] ? `${share(pixels / rowTotals[label])} of ${classes[label].name}` : `${classes[label].name} is not annotated`;
    const what = label === prediction ? `${classes[label].name}, right` : `${classes[label].name} → ${classes[prediction].name}`;
    byId("matrix-cell").textContent = `${what}: ${ofClass} (${number(pixels)} pixels)`;
  }

  const cellAt = (event) => [Math.floor((event.offsetY - margin) / size), Math.floor((event.offsetX - margin) / size)];
  const choose = () => {
    const [label, prediction] = cursor ?? [0, 0];
    if (label !== prediction && cells.has(label * numClasses + prediction)) showImages({ label, prediction });
  };
  canvas.addEventListener("pointermove", (event) => move(...cellAt(event)));
  canvas.addEventListener("click", (event) => { move(...cellAt(event)); choose(); });
  canvas.addEventListener("focus", () => cursor ?? move(0, 0));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) {
      const [row, column] = cursor ?? [0, 0];
      move(row + step[0], column + step[1]);
    } else if (event.key === "Enter") choose();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(draw).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

// -- calibration

function drawCalibration() {
  const place = byId("calibration-content");
  if (!report.calibration) {
    place.append(element("p", { className: "faint" }, "This model has no probabilities of classes: it classifies masks, and what its masks add up to at a pixel is no distribution over the classes."));
    return;
  }
  const bins = report.calibration.bins.filter((bin) => bin.pixels);
  const total = bins.reduce((sum, bin) => sum + bin.pixels, 0);
  if (!total) {
    place.append(element("p", { className: "faint" }, "No pixel is annotated."));
    return;
  }
  const [side, left, bottom] = [300, 40, 70];
  const svg = (name, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const x = (value) => left + side * value;
  const y = (value) => 10 + side * (1 - value);
  const chart = svg("svg", { viewBox: `0 0 ${left + side + 16} ${side + 10 + bottom}`, role: "img", width: "100%", style: "max-width: 440px",
    "aria-label": `Reliability: stated and true share of right pixels in ${bins.length} bins` });
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(
      svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), stroke: "var(--line)" }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, `${100 * tick}`),
      svg("text", { x: x(tick), y: y(0) + bottom - 22, "text-anchor": "middle" }, `${100 * tick}`));
  }
  chart.append(svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), stroke: "var(--faint)", "stroke-dasharray": "4 4" }));
  const most = Math.max(...bins.map((bin) => bin.pixels));
  for (const bin of bins) {
    const tip = `stated ${percent(bin.confidence)} %, right ${percent(bin.accuracy)} %, ${share(bin.pixels / total)} of the pixels`;
    const height = (32 * bin.pixels) / most;
    chart.append(
      svg("rect", { x: x(bin.from) + 1, width: side * (bin.to - bin.from) - 2, y: y(0) + 38 - height, height, fill: "var(--bar)" }, svg("title", {}, tip)),
      svg("line", { x1: x(bin.confidence), x2: x(bin.confidence), y1: y(bin.confidence), y2: y(bin.accuracy), stroke: "var(--bad)", "stroke-width": 2, opacity: 0.5 }));
  }
  chart.append(svg("polyline", { points: bins.map((bin) => `${x(bin.confidence)},${y(bin.accuracy)}`).join(" "), fill: "none", stroke: "var(--accent)", "stroke-width": 2 }));
  for (const bin of bins) {
    const tip = `stated ${percent(bin.confidence)} %, right ${percent(bin.accuracy)} %, ${share(bin.pixels / total)} of the pixels`;
    chart.append(svg("circle", { cx: x(bin.confidence), cy: y(bin.accuracy), r: 4, fill: "var(--accent)" }, svg("title", {}, tip)));
  }
  chart.append(svg("text", { x: x(0.5), y: y(0) + bottom - 5, "text-anchor": "middle" }, "stated probability of the winner, % (bars: how many pixels)"));
  chart.append(svg("text", { x: 11, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 11 ${y(0.5)})` }, "right, %"));

  const mean = (key) => bins.reduce((sum, bin) => sum + bin[key] * bin.pixels, 0) / total;
  const gap = mean("confidence") - mean("accuracy");
  place.append(element("figure", {}, chart), element("div", {},
    element("p", {}, `The model says ${percent(mean("confidence"))} % on average and is right at ${percent(mean("accuracy"))} % of the pixels: ` +
      (Math.abs(gap) < 0.005 ? "as often as it says." : gap > 0 ? "it is surer than it should be." : "it is less sure than it could be.")),
    element("p", {}, `Expected calibration error: ${percent(metrics.ECE)} %, the mean distance of the points from the diagonal, weighted by pixels.`),
    element("p", { className: "faint" }, `From ${number(total)} pixels: every ${report.calibration.grid}th of every ${report.calibration.grid}th row of each image, where it is annotated.`)));
}

// -- images

const state = { order: "worst", label: null, prediction: null, text: "", page: 0, found: [] };

const confused = (index) => {
  let pixels = 0;
  const row = images.confusions[index];
  for (let i = 0; i < row.length; i += 3) {
    if ((state.label === null || row[i] === state.label) && (state.prediction === null || row[i + 1] === state.prediction)) pixels += row[i + 2];
  }
  return pixels;
};
const change = (index) => (images.mIoU[index] === null || images.before[index] === null ? null : images.mIoU[index] - images.before[index]);
const ORDERS = {
  worst: ["Worst mIoU first", (index) => images.mIoU[index], 1],
  boundary: ["Worst Boundary mIoU first", (index) => images.mBoundaryIoU[index], 1],
  accuracy: ["Worst accuracy first", (index) => images.aAcc[index], 1],
  best: ["Best mIoU first", (index) => images.mIoU[index], -1],
  ...(images.before && {
    lost: ["Largest loss first", change, 1],
    gained: ["Largest gain first", change, -1],
  }),
  confused: ["Most of this confusion first", (index) => confused(index) / (images.annotated[index] || 1), -1],
  data: ["As in the data set", (index) => index, 1],
};

function findImages() {
  const isFiltered = state.label !== null || state.prediction !== null;
  const [, value, sign] = ORDERS[state.order];
  state.found = images.name.map((_, index) => index)
    .filter((index) => images.name[index].toLowerCase().includes(state.text) && (!isFiltered || confused(index) > 0))
    .map((index) => [index, value(index)])
    .sort(([i, a], [j, b]) => (a === null || b === null ? (a === null) - (b === null) || i - j : sign * (a - b) || i - j))
    .map(([index]) => index);
  state.page = 0;
  drawCards();
}

function scores(index) {
  if (!images.annotated[index]) return ["not annotated"];
  const parts = [`mIoU ${percent(images.mIoU[index])}`, ` · boundary ${percent(images.mBoundaryIoU[index])}`, ` · accuracy ${percent(images.aAcc[index])}`];
  if (images.before && change(index) !== null) {
    parts.push(" · ", element("span", { className: direction(change(index)) }, signed(change(index))));
  }
  return parts;
}

function picturePath(kind, index) {
  return report.pictures[kind].replace("*", images.index[index]);
}

function strip(index) {
  const thumbnail = report.thumbnails[index];
  if (thumbnail) {
    return element("span", { className: "strip one" }, element("img", { src: thumbnail, alt: "Photo, annotation, prediction, difference" }));
  }
  const pictures = KINDS.map((kind) => {
    const picture = element("img", { loading: "lazy", alt: kind });
    picture.addEventListener("error", () => picture.replaceWith(element("span")));
    picture.src = picturePath(kind, index);
    return picture;
  });
  return element("span", { className: "strip" }, ...pictures);
}

function drawCards() {
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE_SIZE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const shown = state.found.slice(state.page * PAGE_SIZE, (state.page + 1) * PAGE_SIZE);
  byId("cards").replaceChildren(...shown.map((index, place) => {
    const caption = element("span", { className: "caption" },
      element("span", { className: "name", title: images.name[index] }, images.name[index]),
      element("span", { className: "faint" }, ...scores(index)));
    const card = element("button", { type: "button", className: "card" }, strip(index), caption);
    card.addEventListener("click", () => openViewer(state.page * PAGE_SIZE + place));
    return card;
  }));
  const count = state.found.length;
  const what = state.label === null && state.prediction === null ? ""
    : ` where ${state.label === null ? "another class" : classes[state.label].name} is taken for ${state.prediction === null ? "another class" : classes[state.prediction].name}`;
  byId("image-count").textContent = `${number(count)} of ${number(numImages)} images${what}. Each: photo, annotation, prediction, difference (red: wrong).`;
  byId("page-number").textContent = `${state.page + 1} / ${pages}`;
  byId("previous-page").disabled = state.page === 0;
  byId("next-page").disabled = state.page === pages - 1;
}

function showImages({ label = null, prediction = null }) {
  setFilter(label, prediction);
  byId("images").scrollIntoView();
  byId("order").focus({ preventScroll: true });
}

function setFilter(label, prediction) {
  Object.assign(state, { label, prediction, order: label === null && prediction === null ? "worst" : "confused" });
  byId("truth-filter").value = label ?? "";
  byId("prediction-filter").value = prediction ?? "";
  byId("order").value = state.order;
  findImages();
}

function drawImages() {
  byId("order").append(...Object.entries(ORDERS).map(([key, [title]]) => element("option", { value: key }, title)));
  for (const [id, key] of [["truth-filter", "label"], ["prediction-filter", "prediction"]]) {
    const present = [...new Set(pairs.map((pair) => pair[key]))].sort((a, b) => classes[a].name.localeCompare(classes[b].name));
    byId(id).append(element("option", { value: "" }, "any class"), ...present.map((index) => element("option", { value: index }, classes[index].name)));
    byId(id).addEventListener("change", (event) => {
      const chosen = { label: state.label, prediction: state.prediction, [key]: event.target.value === "" ? null : Number(event.target.value) };
      setFilter(chosen.label, chosen.prediction);
    });
  }
  byId("order").addEventListener("change", (event) => { state.order = event.target.value; findImages(); });
  byId("image-search").addEventListener("input", (event) => { state.text = event.target.value.toLowerCase(); findImages(); });
  byId("reset").addEventListener("click", () => { state.text = byId("image-search").value = ""; setFilter(null, null); });
  const turn = (step) => { state.page += step; drawCards(); byId("images").scrollIntoView(); };
  byId("previous-page").addEventListener("click", () => turn(-1));
  byId("next-page").addEventListener("click", () => turn(1));
  findImages();
}

// -- one image

let viewed = 0;

function openViewer(place) {
  viewed = Math.min(Math.max(place, 0), state.found.length - 1);
  const index = state.found[viewed];
  byId("viewer-name").textContent = images.name[index];
  byId("viewer-scores").replaceChildren(...scores(index), ` · ${images.size[index]}`);
  byId("viewer-pictures").replaceChildren(...KINDS.map((kind) => {
    const path = picturePath(kind, index);
    const picture = element("img", { alt: `${kind} of ${images.name[index]}` });
    const link = element("a", { href: path, target: "_blank" }, picture);
    picture.addEventListener("error", () => link.replaceWith(element("p", { className: "gone faint" }, `${path} is not beside this page.`)));
    picture.src = path;
    return element("figure", {}, element("figcaption", { className: "faint" }, kind[0].toUpperCase() + kind.slice(1)), link);
  }));
  const row = images.confusions[index];
  const found = [];
  for (let i = 0; i < row.length; i += 3) found.push({ label: row[i], prediction: row[i + 1], pixels: row[i + 2] });
  const columns = [
    { title: "annotation → prediction", value: (pair) => classes[pair.label].name, cell: (pair) => [...className(pair.label), " → ", ...className(pair.prediction)] },
    { title: "of its pixels", number: true, value: (pair) => pair.pixels, cell: (pair) => share(pair.pixels / images.annotated[index]) },
  ];
  byId("viewer-confusions").replaceChildren(found.length ? table(columns, found, { limit: 8, sorted: 1 }).place : "");
  byId("viewer-previous").disabled = viewed === 0;
  byId("viewer-next").disabled = viewed === state.found.length - 1;
  if (!byId("viewer").open) byId("viewer").showModal();
}

function drawViewer() {
  const viewer = byId("viewer");
  byId("viewer-previous").addEventListener("click", () => openViewer(viewed - 1));
  byId("viewer-next").addEventListener("click", () => openViewer(viewed + 1));
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) openViewer(viewed + step);
  });
}

// -- about

function drawAbout() {
  const { finished, device, ...versions } = report.environment;
  const shown = Object.keys(report.thumbnails).length;
  const augmented = report.protocol.test_time_augmentation;
  const texts = [
    ["What is in it", `Everything but full-size pictures is in this file, which works offline. Thumbnails of ${shown === numImages ? "all images" : `${number(shown)} images, the worst,`} are in it; ` +
      "other pictures are read from the folder report/ beside it when they are shown. evaluation.json has the numbers, image_counts.parquet those of each image."],
    ["IoU, recall, precision", "Pixels of all images together, per class: right / (annotated or predicted so), right / annotated so, right / predicted so. Means are over the classes that have a number. Pixels without annotation are not counted."],
    ["Boundary IoU", `As IoU, only of the pixels near the boundary of the class, on its inner side (Cheng et al., 2021): at most ${percent(report.boundary.width_of_diagonal, 0)} % of the image's diagonal from a pixel of another class, from the image's border, or from pixels without annotation. Intersections and unions are summed over all images.`],
    ["Images", `${numImages === report.dataset.num_images ? "All" : `The ${number(numImages)} with the lowest mIoU, of ${number(report.dataset.num_images)},`} are listed.`],
    ["Score of an image", "mIoU and Boundary mIoU over the classes that are annotated or predicted in it: a class of a few pixels weighs as much as any other."],
    ["Filter by confusion", `Finds the images where the confusion takes at least ${percent(report.smallest_confusion, 1)} % of the annotated pixels.`],
    ["Calibration", "The probability of the winning class after a softmax over the classes" + (augmented ? ", averaged over all views" : "") + ", in 15 bins of equal width (Guo et al., 2017), at a grid of pixels."],
    ["How it was computed", [
      `${report.model.class}, ${number(report.model.num_parameters)} parameters`, augmented ? "test-time augmentation" : "one view", report.protocol.dtype, device,
      `offseg_hf ${versions.offseg_hf}`, `torch ${versions.torch}`, `transformers ${versions.transformers}`, finished].join(", ")],
  ];
  byId("about-text").append(element("dl", {}, ...texts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
}

drawSummary();
drawComparison();
drawClasses();
drawPairs();
drawMatrix();
drawCalibration();
drawImages();
drawViewer();
drawAbout();
document.body.dataset.drawn = "yes";
