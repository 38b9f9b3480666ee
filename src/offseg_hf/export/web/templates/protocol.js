// The arithmetic before and after the network, as the image processor and `AveragedWindows` do it: a photo to the
// images that the network sees, and its logits to the class of every pixel of the photo. Nothing here knows of a page.

const WEIGHT_SCALE = 1 << 11; // OpenCV's fixed point: interpolation weights are integers of 11 bits

// -- before the network ----------------------------------------------------------------------------------------------

/** Return the size [height, width] that a photo is resized to. */
export function resizedSize(height, width, protocol) {
  if (!protocol.do_resize) return [height, width];
  const size = protocol.size;
  if (!size.shortest_edge) return [size.height, size.width];
  let scale = size.shortest_edge / Math.min(height, width);
  if (size.longest_edge) scale = Math.min(size.longest_edge / Math.max(height, width), scale);
  return [height, width].map(length => Math.max(1, Math.floor(length * scale + 0.5)));
}

/** Return the windows [top, left, bottom, right] of an image, and its size with padding. */
export function windowsOf(height, width, protocol) {
  const divisor = (protocol.do_pad && protocol.size_divisor) || 1;
  const [paddedHeight, paddedWidth] = [height, width].map(length => Math.ceil(length / divisor) * divisor);
  const [size, stride] = [protocol.window_size, protocol.window_stride];
  if (!size) return [[0, 0, paddedHeight, paddedWidth]];
  return intervals(paddedHeight, size, stride).flatMap(([top, bottom]) =>
    intervals(paddedWidth, size, stride).map(([left, right]) => [top, left, bottom, right]));
}

function intervals(length, size, stride) {
  const number = Math.floor(Math.max(length - size + stride - 1, 0) / stride) + 1;
  return Array.from({ length: number }, (_, index) => {
    const end = Math.min(index * stride + size, length);
    return [Math.max(end - size, 0), end];
  });
}

/**
 * Resize a photo as `cv2.resize` does with INTER_LINEAR, bit by bit.
 *
 * `readRow(y)` gives {data, start}: where in a Uint8 array the RGBA pixels of a row begin. Rows are asked for from top
 * to bottom, so that a large photo is never there as a whole. Returns RGB, Uint8 (height, width, 3).
 */
export function resize(readRow, oldHeight, oldWidth, height, width) {
  const result = new Uint8Array(height * width * 3);
  if (height === oldHeight && width === oldWidth) {
    for (let y = 0; y < height; y++) copyRow(readRow(y), result, y * width * 3, width);
  } else if (oldHeight === 2 * height && oldWidth === 2 * width) {
    halve(readRow, height, width, result);
  } else {
    resizeByTaps(readRow, oldHeight, oldWidth, height, width, result);
  }
  return result;
}

function copyRow({ data, start }, result, offset, width) {
  for (let x = 0; x < width; x++, start += 4) {
    for (let channel = 0; channel < 3; channel++) result[offset++] = data[start + channel];
  }
}

function halve(readRow, height, width, result) {
  const total = new Uint16Array(width * 3);
  for (let y = 0; y < height; y++) {
    total.fill(2);
    for (let half = 0; half < 2; half++) {
      const { data, start } = readRow(2 * y + half);
      for (let x = 0; x < 2 * width; x++) {
        for (let channel = 0; channel < 3; channel++) total[(x >> 1) * 3 + channel] += data[start + 4 * x + channel];
      }
    }
    for (let i = 0; i < total.length; i++) result[y * width * 3 + i] = total[i] >> 2;
  }
}

function resizeByTaps(readRow, oldHeight, oldWidth, height, width, result) {
  const columns = fixedTaps(oldWidth, width, true), rows = fixedTaps(oldHeight, height, false);
  const kept = new Map(); // row of the photo -> the same, resized to the width: of two rows at most
  const wide = y => {
    if (kept.has(y)) return kept.get(y);
    const { data, start } = readRow(y);
    const row = new Int32Array(width * 3);
    for (let x = 0, i = 0; x < width; x++) {
      const left = start + 4 * columns.first[x], right = start + 4 * columns.second[x];
      for (let channel = 0; channel < 3; channel++, i++) {
        row[i] = (data[left + channel] * columns.weight[x] + data[right + channel] * columns.rest[x]) >> 4;
      }
    }
    for (const old of [...kept.keys()].slice(0, -1)) kept.delete(old);
    return kept.set(y, row).get(y);
  };
  for (let y = 0, i = 0; y < height; y++) {
    const upper = wide(rows.first[y]), lower = wide(rows.second[y]);
    const top = rows.weight[y], bottom = rows.rest[y];
    for (let x = 0; x < width * 3; x++, i++) {
      result[i] = (((upper[x] * top) >> 16) + ((lower[x] * bottom) >> 16) + 2) >> 2;
    }
  }
}

/** Of every new position along a side: the two old ones that it lies between, and their weights in fixed point. */
function fixedTaps(old, length, isHorizontal) {
  const [first, second, weight, restWeight] = [0, 1, 2, 3].map(() => new Int32Array(length));
  const taps = { first, second, weight, rest: restWeight };
  const scale = 1 / (length / old);
  for (let i = 0; i < length; i++) {
    const position = Math.fround((i + 0.5) * scale - 0.5);
    const index = Math.floor(position);
    taps.first[i] = Math.min(Math.max(index, 0), old - 1);
    taps.second[i] = Math.min(Math.max(index + 1, 0), old - 1);
    // Past the left and right border OpenCV gives the border pixel all weight, past top and bottom it repeats the row.
    const isBorder = isHorizontal && taps.first[i] === taps.second[i];
    const rest = isBorder ? 0 : Math.fround(position - index);
    taps.weight[i] = roundHalfToEven(Math.fround(1 - rest) * WEIGHT_SCALE);
    taps.rest[i] = roundHalfToEven(rest * WEIGHT_SCALE);
  }
  return taps;
}

function roundHalfToEven(value) {
  const low = Math.floor(value), part = value - low;
  return part === 0.5 ? low + (low & 1) : Math.round(value);
}

/** Return what the network sees of a resized photo in a window: Float32 (3, height, width), padding as 0. */
export function crop(pixels, height, width, [top, left, bottom, right], protocol) {
  const tables = normalization(protocol);
  const area = (bottom - top) * (right - left);
  const result = new Float32Array(3 * area);
  for (let y = top; y < Math.min(bottom, height); y++) {
    for (let x = left; x < Math.min(right, width); x++) {
      const place = (y - top) * (right - left) + x - left, pixel = (y * width + x) * 3;
      for (let channel = 0; channel < 3; channel++) result[channel * area + place] = tables[channel][pixels[pixel + channel]];
    }
  }
  return result;
}

/** Per channel, what each of the 256 values becomes. */
function normalization(protocol) {
  const factor = protocol.do_rescale ? protocol.rescale_factor : 1;
  const of = (values, channel) => Math.fround((Array.isArray(values) ? values[values.length > 1 ? channel : 0] : values) / factor);
  return [0, 1, 2].map(channel => Float32Array.from({ length: 256 }, (_, value) => {
    if (!protocol.do_normalize) return value * Math.fround(factor);
    return Math.fround(value - of(protocol.image_mean, channel)) / of(protocol.image_std, channel);
  }));
}

// -- after the network -----------------------------------------------------------------------------------------------

/** Of every new position of torch's bilinear interpolation (align_corners=False): the scores it lies between. */
function interpolation(old, length) {
  const taps = {
    low: new Int32Array(length), high: new Int32Array(length),
    lowWeight: new Float32Array(length), highWeight: new Float32Array(length),
  };
  const scale = Math.fround(old / length);
  for (let i = 0; i < length; i++) {
    const position = Math.max(Math.fround(Math.fround(scale * (i + 0.5)) - 0.5), 0);
    const low = Math.min(Math.floor(position), old - 1);
    taps.low[i] = low;
    taps.high[i] = Math.min(low + 1, old - 1);
    taps.highWeight[i] = low === old - 1 ? 0 : Math.fround(position - low);
    taps.lowWeight[i] = Math.fround(1 - taps.highWeight[i]);
  }
  return taps;
}

/** The scores of an image, averaged over the windows that see a pixel; computed row by row. */
export class AveragedWindows {
  constructor(classes, height, width) {
    Object.assign(this, { classes, height, width, windows: [] });
  }

  /** Take the logits (classes, height, width) of a window [top, left, bottom, right], which may reach over the image. */
  add([top, left, bottom, right], logits, height, width) {
    this.windows.push({
      top, left, bottom, right, logits, height, width,
      rows: interpolation(height, bottom - top), columns: interpolation(width, right - left),
    });
  }

  /** Write the scores (classes, width) of a row of the image. */
  row(y, scores) {
    const count = new Uint8Array(this.width);
    scores.fill(0);
    for (const window of this.windows) {
      if (y >= window.top && y < window.bottom) this.addRow(window, y - window.top, scores, count);
    }
    for (let x = 0; x < this.width; x++) {
      if (count[x] === 1) continue;
      for (let i = x; i < scores.length; i += this.width) scores[i] /= count[x];
    }
  }

  addRow({ left, right, logits, height, width, rows, columns }, y, scores, count) {
    const upper = rows.low[y] * width, lower = rows.high[y] * width;
    const top = rows.lowWeight[y], bottom = rows.highWeight[y];
    const { low, high, lowWeight, highWeight } = columns;
    const end = Math.min(right, this.width);
    const mixed = new Float32Array(width);
    for (let name = 0; name < this.classes; name++) {
      const plane = name * height * width;
      for (let x = 0; x < width; x++) mixed[x] = top * logits[plane + upper + x] + bottom * logits[plane + lower + x];
      for (let i = 0, target = name * this.width + left; i < end - left; i++, target++) {
        scores[target] += lowWeight[i] * mixed[low[i]] + highWeight[i] * mixed[high[i]];
      }
    }
    for (let x = left; x < end; x++) count[x]++;
  }

  /**
   * Return the class of every pixel at another size, usually that of the photo: Uint8, or Uint16 of many classes.
   *
   * Every pixel between four neighboring scores is a convex combination of them, so that a class that wins at all four
   * wins in between, and one whose largest is below the smallest of another wins nowhere. Scores are there for two rows
   * at a time, not for all classes at all pixels. `progress(share)` is told of the share that is done.
   */
  labelMap(height, width, progress = () => {}) {
    const rows = interpolation(this.height, height), columns = interpolation(this.width, width);
    const firstColumn = firstOf(columns.low, this.width), firstRow = firstOf(rows.low, this.height);
    const labels = new (this.classes > 256 ? Uint16Array : Uint8Array)(height * width);
    const cells = new Cells(this.classes, this.width, rows, columns, firstColumn);
    let here = this.scoredRow(), below = this.scoredRow();
    for (let y = 0; y < this.height; y++) {
      const [begin, end] = [firstRow[y], firstRow[y + 1]];
      progress((y + 1) / this.height);
      if (begin === end) continue;
      if (below.y === y) [here, below] = [below, here];
      this.read(here, y);
      this.read(below, Math.min(y + 1, this.height - 1));
      cells.fill(here, below, labels, begin, end, width);
    }
    return labels;
  }

  scoredRow() {
    return { y: -1, scores: new Float32Array(this.classes * this.width), winner: new Uint16Array(this.width) };
  }

  read(row, y) {
    if (row.y === y) return;
    row.y = y;
    this.row(y, row.scores);
    const { classes, width } = this, { scores, winner } = row;
    const best = scores.slice(0, width);
    winner.fill(0);
    for (let name = 1, i = width; name < classes; name++) {
      for (let x = 0; x < width; x++, i++) {
        const score = scores[i];
        if (score > best[x]) {
          best[x] = score;
          winner[x] = name;
        }
      }
    }
  }
}

/** Where the positions after each of `number` scores begin, and, as the last, how many there are. */
function firstOf(low, number) {
  const first = new Int32Array(number + 1);
  for (const score of low) first[score + 1]++;
  for (let i = 0; i < number; i++) first[i + 1] += first[i];
  return first;
}

/** Pixels between two rows of scores. */
class Cells {
  constructor(classes, width, rows, columns, firstColumn) {
    Object.assign(this, { classes, width, rows, columns, firstColumn });
    this.candidates = new Uint16Array(classes);
    this.corners = [0, 1, 2, 3].map(() => new Float32Array(classes));
  }

  fill(here, below, labels, begin, end, width) {
    for (let x = 0; x < this.width; x++) {
      labels.fill(here.winner[x], begin * width + this.firstColumn[x], begin * width + this.firstColumn[x + 1]);
    }
    for (let y = begin + 1; y < end; y++) labels.copyWithin(y * width, begin * width, (begin + 1) * width);
    for (let x = 0; x < this.width; x++) {
      const [first, last] = [this.firstColumn[x], this.firstColumn[x + 1]];
      const next = Math.min(x + 1, this.width - 1), winner = here.winner[x];
      const isPure = winner === here.winner[next] && winner === below.winner[x] && winner === below.winner[next];
      if (first === last || isPure) continue;
      const number = this.findCandidates(here.scores, below.scores, x, next);
      for (let row = begin; row < end; row++) {
        for (let column = first; column < last; column++) labels[row * width + column] = this.best(number, row, column);
      }
    }
  }

  /** Collect the classes that can win in a cell, with their scores at its corners; return how many they are. */
  findCandidates(here, below, x, next) {
    let bar = -Infinity;
    for (let i = 0, end = this.classes * this.width; i < end; i += this.width) {
      bar = Math.max(bar, Math.min(here[i + x], here[i + next], below[i + x], below[i + next]));
    }
    const [topLeft, topRight, bottomLeft, bottomRight] = this.corners;
    let number = 0;
    for (let name = 0, i = 0; name < this.classes; name++, i += this.width) {
      if (Math.max(here[i + x], here[i + next], below[i + x], below[i + next]) < bar) continue;
      topLeft[number] = here[i + x];
      topRight[number] = here[i + next];
      bottomLeft[number] = below[i + x];
      bottomRight[number] = below[i + next];
      this.candidates[number++] = name;
    }
    return number;
  }

  best(number, row, column) {
    const [topLeft, topRight, bottomLeft, bottomRight] = this.corners;
    const left = this.columns.lowWeight[column], right = this.columns.highWeight[column];
    const top = this.rows.lowWeight[row], bottom = this.rows.highWeight[row];
    let best = -Infinity, label = 0;
    for (let i = 0; i < number; i++) {
      const score = top * (left * topLeft[i] + right * topRight[i]) + bottom * (left * bottomLeft[i] + right * bottomRight[i]);
      if (score > best) {
        best = score;
        label = this.candidates[i];
      }
    }
    return label;
  }
}

/** Return how many pixels each class has. */
export function countClasses(labels, classes) {
  const count = new Float64Array(classes);
  for (const label of labels) count[label]++;
  return count;
}
