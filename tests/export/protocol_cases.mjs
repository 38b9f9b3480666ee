// Runs the page's arithmetic on the cases of test_web_protocol.py: JSON in, JSON out, arrays as base64.
import { readFileSync } from "node:fs";

const [, , folder, file] = process.argv;
const protocol = await import(`${folder}/protocol.js`);
const { labelPng } = await import(`${folder}/png.js`);
const bytes = text => new Uint8Array(Buffer.from(text, "base64"));
const text = array => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");

function prepared({ rgba, height, width, protocol: settings }) {
  const data = bytes(rgba);
  const [newHeight, newWidth] = protocol.resizedSize(height, width, settings);
  const pixels = protocol.resize(y => ({ data, start: 4 * width * y }), height, width, newHeight, newWidth);
  const windows = protocol.windowsOf(newHeight, newWidth, settings);
  const crops = windows.map(window => text(protocol.crop(pixels, newHeight, newWidth, window, settings)));
  return { size: [newHeight, newWidth], pixels: text(pixels), windows, crops };
}

async function labeled({ classes, size, target, windows }) {
  const scores = new protocol.AveragedWindows(classes, ...size);
  for (const { box, logits, shape } of windows) scores.add(box, new Float32Array(bytes(logits).buffer), ...shape);
  const seen = [];
  const labels = scores.labelMap(...target, share => seen.push(share));
  const palette = Array.from({ length: classes }, (_, label) => [label % 256, 7, 255 - (label % 256)]);
  const png = new Uint8Array(await (await labelPng(labels, target[1], target[0], palette)).arrayBuffer());
  const counts = [...protocol.countClasses(labels, classes)];
  return { labels: text(labels), counts, progress: seen.at(-1), png: text(png) };
}

const cases = JSON.parse(readFileSync(file, "utf8"));
const scores = await Promise.all(cases.scores.map(labeled));
console.log(JSON.stringify({ photos: cases.photos.map(prepared), scores }));
