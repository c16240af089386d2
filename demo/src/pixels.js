// Turns a frame into the network's input: scales the short side and crops the centre. Scaling uses
// Pillow's bilinear filter, which averages when it shrinks an image, so the page predicts the same
// as `tsm stream`.

/** Returns, for each output position of an axis, the first input pixel and the pixels' weights. */
function taps(size, scaledSize, first, count) {
  const scale = size / scaledSize;
  const support = Math.max(scale, 1);
  return Array.from({ length: count }, (_, i) => {
    const center = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.floor(center - support + 0.5));
    const end = Math.min(size, Math.floor(center + support + 0.5));
    const weights = [];
    for (let x = start; x < end; x++) {
      weights.push(Math.max(0, 1 - Math.abs((x - center + 0.5) / support)));
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((weight) => weight / sum) };
  });
}

function roundHalfToEven(x) {
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}

/** Returns width and height after scaling. */
function scaled(width, height, shortSide, fixedRatio) {
  if (Math.min(width, height) === shortSide) return [width, height];
  const long = fixedRatio
    ? Math.trunc((shortSide * 4) / 3)
    : Math.trunc((Math.max(width, height) * shortSide) / Math.min(width, height));
  return width <= height ? [shortSide, long] : [long, shortSide];
}

/** Prepares frames; keeps what depends only on their size until the size changes. */
export class Pixels {
  constructor({ cropSize, shortSide, fixedRatio }) {
    Object.assign(this, { cropSize, shortSide, fixedRatio });
    this.width = this.height = 0;
  }

  #fit(width, height) {
    const [newWidth, newHeight] = scaled(width, height, this.shortSide, this.fixedRatio);
    const left = roundHalfToEven((newWidth - this.cropSize) / 2);
    const top = roundHalfToEven((newHeight - this.cropSize) / 2);
    this.columns = taps(width, newWidth, left, this.cropSize);
    this.rows = taps(height, newHeight, top, this.cropSize);
    this.between = new Uint8ClampedArray(height * this.cropSize * 3);
    Object.assign(this, { width, height });
  }

  /** Converts RGBA `[height, width, 4]` to RGB `[S, S, 3]`. */
  prepare({ data, width, height }) {
    if (width !== this.width || height !== this.height) this.#fit(width, height);
    const { between, cropSize } = this;
    const first = this.rows[0].start;
    const last = this.rows.at(-1).start + this.rows.at(-1).weights.length;
    for (let y = first; y < last; y++) {
      for (let x = 0; x < cropSize; x++) {
        const { start, weights } = this.columns[x];
        let at = (y * width + start) * 4;
        let red = 0;
        let green = 0;
        let blue = 0;
        for (const weight of weights) {
          red += weight * data[at];
          green += weight * data[at + 1];
          blue += weight * data[at + 2];
          at += 4;
        }
        between.set([red, green, blue], (y * cropSize + x) * 3);
      }
    }
    const pixels = new Uint8ClampedArray(cropSize * cropSize * 3);
    const line = cropSize * 3;
    for (let y = 0; y < cropSize; y++) {
      const { start, weights } = this.rows[y];
      for (let x = 0; x < line; x++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += weights[i] * between[(start + i) * line + x];
        pixels[y * line + x] = sum;
      }
    }
    return new Uint8Array(pixels.buffer);
  }
}
