// Resize images as Pillow does: antialiased, on 8-bit pixels, with the same rounding. transformers.js leaves resizing to
// sharp (in Node) and to the canvas (in browsers), which give other pixels and so other scores.

const FILTERS = {
  // number in preprocessor_config.json -> [reach in pixels, weight at a distance]
  2: [1, (x) => Math.max(0, 1 - Math.abs(x))], // bilinear
  3: [2, cubic],
  1: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)], // Lanczos
};
const ONE = 2 ** 22; // weights are whole numbers over this

// Make a transformers.js pipeline prepare images as Python's does, by the filter `pillow_resample` of
// preprocessor_config.json. It takes everything that it took before. Returns the pipeline.
export function resizeLikePython(classifier) {
  const processor = classifier.processor.image_processor ?? classifier.processor;
  const { do_resize = true, do_center_crop = false, size, crop_size, pillow_resample } = processor.config;
  if (do_resize && !FILTERS[pillow_resample]) {
    throw new Error(`pillow_resample is ${pillow_resample}, expected ${Object.keys(FILTERS).join(", ")}.`);
  }
  processor.resize = async (image) => {
    let result = image;
    if (do_resize) {
      result = resize(result, ...targetSize(result, size), FILTERS[pillow_resample]);
    }
    if (do_center_crop) {
      result = centerCrop(result, crop_size.width, crop_size.height);
    }
    return new image.constructor(result.data, result.width, result.height, result.channels);
  };
  processor.do_resize = do_resize || do_center_crop;
  processor.do_center_crop = false;
  return classifier;
}

// Return [width, height] for a `size` with `shortest_edge`, or with `height` and `width`.
function targetSize({ width, height }, size) {
  const short = size.shortest_edge;
  if (!short) {
    return [size.width, size.height];
  }
  return width <= height
    ? [short, Math.floor((short * height) / width)]
    : [Math.floor((short * width) / height), short];
}

// Return an image {data, width, height, channels} of another size; `data` has height x width x channels bytes.
function resize(image, width, height, [reach, weight]) {
  const { channels } = image;
  let { data } = image;
  if (width !== image.width) {
    const taps = makeTaps(image.width, width, reach, weight);
    data = resample(data, taps, { lines: image.height, line: image.width * channels, step: channels, channels });
  }
  if (height !== image.height) {
    const line = width * channels; // every byte of a row is a line of its own
    const taps = makeTaps(image.height, height, reach, weight);
    data = resample(data, taps, { lines: line, line: 1, step: line, channels: 1 });
  }
  return { data, width, height, channels };
}

// Return for each of `outSize` pixels the first pixel that it takes, and their weights.
function makeTaps(inSize, outSize, reach, weight) {
  const scale = inSize / outSize;
  const stretch = Math.max(1, scale);
  return Array.from({ length: outSize }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const end = Math.min(inSize, Math.trunc(center + reach * stretch + 0.5));
    const weights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      weights.push(weight((x - center + 0.5) / stretch));
      sum += weights.at(-1);
    }
    return [first, Int32Array.from(weights, (value) => roundAwayFromZero((value / sum) * ONE))];
  });
}

// Weigh the pixels of each line. A line begins `line` bytes after the one before it, a pixel `step` bytes.
function resample(data, taps, { lines, line, step, channels }) {
  const across = step === channels; // lines are rows; else columns
  const result = new Uint8ClampedArray(lines * taps.length * channels);
  const [outLine, outStep] = across ? [taps.length * channels, channels] : [1, lines];
  for (let number = 0; number < lines; number++) {
    for (let index = 0; index < taps.length; index++) {
      const [first, weights] = taps[index];
      for (let channel = 0; channel < channels; channel++) {
        let sum = ONE / 2;
        let position = number * line + first * step + channel;
        for (let tap = 0; tap < weights.length; tap++, position += step) {
          sum += data[position] * weights[tap];
        }
        result[number * outLine + index * outStep + channel] = Math.floor(sum / ONE);
      }
    }
  }
  return result;
}

// Cut out the middle, with black around images that are smaller.
function centerCrop(image, width, height) {
  const { data, channels } = image;
  const left = Math.floor((image.width - width) / 2);
  const top = Math.floor((image.height - height) / 2);
  const result = new Uint8ClampedArray(width * height * channels);
  const from = Math.max(0, left);
  const to = Math.min(image.width, left + width);
  for (let y = Math.max(0, top); y < Math.min(image.height, top + height); y++) {
    const row = data.subarray((y * image.width + from) * channels, (y * image.width + to) * channels);
    result.set(row, ((y - top) * width + from - left) * channels);
  }
  return { data: result, width, height, channels };
}

function cubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) {
    return ((a + 2) * d - (a + 3)) * d * d + 1;
  }
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

function roundAwayFromZero(value) {
  return Math.trunc(value + (value < 0 ? -0.5 : 0.5));
}
