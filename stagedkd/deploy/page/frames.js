// Which frames of a video a student sees, and how a frame becomes its picture: the rules of `stagedkd predict --every`.
// `frames` and `picture` are those of the card, student.json. Pictures are bytes, rows first, 3 channels (RGB).

/** Round to the nearest whole number, halves to the even one, as Python does. */
export function roundEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** Ticks or frames from the first frame of a clip to the end of its last one. */
export function span(frames) {
  return frames.sampler === "segments" ? frames.frames : (frames.frames - 1) * frames.stride + 1;
}

/** Seconds of a clip in a video with `step` seconds a frame; null for segments, which have no length of their own. */
export function ownLength(frames, step) {
  if (frames.sampler === "segments") return null;
  return frames.rate === null ? span(frames) * step : span(frames) / frames.rate;
}

/** The indices of the frames of the middle clip in a video whose frames have these times, in seconds. */
export function clipFrames(frames, times) {
  const count = times.length;
  const between = times[count - 1] - times[0];
  const seconds = between > 0 ? (between * count) / Math.max(1, count - 1) : 1;
  const length = frames.rate === null ? count : seconds * frames.rate;
  const room = Math.max(0, length - span(frames));
  const start = frames.rate === null ? Math.floor(Math.floor(room) / 2) : room / 2;
  return Array.from({ length: frames.frames }, (_, i) => {
    const place = frames.sampler === "segments" ? (i + 0.5) * (length / frames.frames) : start + i * frames.stride;
    const inside = frames.short === "pad" ? Math.min(place, length - 1e-6) : place % length;
    if (frames.rate === null) return Math.min(Math.floor(inside + 1e-9), count - 1);
    return Math.max(0, firstAfter(times, times[0] + inside / frames.rate + 1e-6) - 1);
  });
}

/** The index of the first time that is later than `time`. */
function firstAfter(times, time) {
  let [low, high] = [0, times.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] > time) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** The windows of a video, one at every so many seconds as far as whole ones reach: start, end, indices of frames. */
export function windowsOf(frames, times, every) {
  const step = times[times.length - 1] / Math.max(1, times.length - 1) || 0.04;
  const duration = times[times.length - 1] + step;
  const seconds = ownLength(frames, step) || every;
  const windows = [];
  for (let number = 0; number === 0 || number * every + seconds <= duration + 1e-6; number++) {
    const start = number * every;
    const first = Math.min(firstAfter(times, start - 1e-9), times.length - 1);
    const last = Math.max(firstAfter(times, start + seconds - 1e-9), first + 1);
    const indices = clipFrames(frames, times.slice(first, last)).map((index) => first + index);
    windows.push({ start, end: Math.min(start + seconds, duration), indices });
  }
  return windows;
}

/** A browser's picture, 4 channels, scaled by the mean of areas so that its shorter side is `shorter`.
 *
 * `paired`: two neighbours in a row get one colour and keep their brightness. swscale does so when it scales a decoded
 * file, as `stagedkd predict` reads it, but not when it scales the RGB pictures of a camera. */
export function scaledPicture({ data, width, height }, shorter, paired) {
  const scale = shorter / Math.max(1, Math.min(height, width));
  const [tall, wide] = [height, width].map((side) => Math.max(1, roundEven(side * scale)));
  const rows = areaWeights(height, tall);
  const exact = resampled(data, 4, width, rows, areaWeights(width, wide), false);
  if (paired) pairColours(exact, resampled(data, 4, width, rows, areaWeights(width, (wide + 1) >> 1), false), wide);
  return { data: new Uint8Array(new Uint8ClampedArray(exact).buffer), width: wide, height: tall };
}

/** Give each pixel the colour of its pair, and its own brightness (ITU-R BT.601). */
function pairColours(exact, pairs, wide) {
  const bright = (values, at) => 0.299 * values[at] + 0.587 * values[at + 1] + 0.114 * values[at + 2];
  const half = (wide + 1) >> 1;
  for (let at = 0, pixel = 0; at < exact.length; at += 3, pixel++) {
    const pair = 3 * (Math.floor(pixel / wide) * half + ((pixel % wide) >> 1));
    const more = bright(exact, at) - bright(pairs, pair);
    for (let channel = 0; channel < 3; channel++) exact[at + channel] = pairs[pair + channel] + more;
  }
}

/** The largest box in the middle of a picture that has the shape of `size` (height, width), scaled to `size`. */
export function croppedPicture({ data, width, height }, [tall, wide]) {
  const flat = height * wide <= width * tall;
  const boxHeight = flat ? height : Math.max(1, roundEven((width * tall) / wide));
  const boxWidth = flat ? Math.max(1, roundEven((height * wide) / tall)) : width;
  const top = roundEven(0.5 * (height - boxHeight));
  const left = roundEven(0.5 * (width - boxWidth));
  const box = new Uint8Array(boxHeight * boxWidth * 3);
  for (let y = 0; y < boxHeight; y++) {
    const from = ((top + y) * width + left) * 3;
    box.set(data.subarray(from, from + boxWidth * 3), y * boxWidth * 3);
  }
  if (boxHeight === tall && boxWidth === wide) return box;
  return resampled(box, 3, boxWidth, triangleWeights(boxHeight, tall), triangleWeights(boxWidth, wide), true);
}

/** For each target pixel: the first source pixel and the weights of those from there on. Shrinks by areas. */
function areaWeights(source, target) {
  if (target > source) return triangleWeights(source, target);
  return Array.from({ length: target }, (_, i) => {
    const [begin, end] = [(i * source) / target, ((i + 1) * source) / target];
    const first = Math.floor(begin + 1e-9);
    const count = Math.max(1, Math.ceil(end - 1e-9) - first);
    const share = (j) => (Math.min(end, first + j + 1) - Math.max(begin, first + j)) / (end - begin);
    return { first, weights: Float32Array.from({ length: count }, (_, j) => share(j)) };
  });
}

/** The same for bilinear scaling with antialiasing, as torch and Pillow do it. */
function triangleWeights(source, target) {
  const scale = source / target;
  const support = Math.max(1, scale);
  return Array.from({ length: target }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - support + 0.5));
    const end = Math.min(source, Math.floor(centre + support + 0.5));
    const weight = (j) => Math.max(0, 1 - Math.abs(first + j + 0.5 - centre) / support);
    const raw = Array.from({ length: end - first }, (_, j) => weight(j));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, weights: Float32Array.from(raw, (each) => each / sum) };
  });
}

/** Scale by weights, columns first, then rows. `whole`: values are rounded to bytes after both, as torch does. */
function resampled(data, channels, width, rows, columns, whole) {
  const height = data.length / channels / width;
  const Values = whole ? Uint8ClampedArray : Float32Array;
  const between = new Values(height * columns.length * 3);
  let out = 0;
  for (let y = 0; y < height; y++) {
    for (const { first, weights } of columns) {
      let [red, green, blue] = [0, 0, 0];
      let at = (y * width + first) * channels;
      for (let j = 0; j < weights.length; j++, at += channels) {
        red += weights[j] * data[at];
        green += weights[j] * data[at + 1];
        blue += weights[j] * data[at + 2];
      }
      between[out++] = red;
      between[out++] = green;
      between[out++] = blue;
    }
  }
  const row = columns.length * 3;
  const scaled = new Values(rows.length * row);
  rows.forEach(({ first, weights }, y) => {
    for (let x = 0; x < row; x++) {
      let sum = 0;
      for (let j = 0; j < weights.length; j++) sum += weights[j] * between[(first + j) * row + x];
      scaled[y * row + x] = sum;
    }
  });
  return scaled;
}

/** The bytes of a clip as the graph takes them, from pictures that are scaled already. */
export function clipBytes(pictures, size) {
  const bytes = new Uint8Array(pictures.length * size[0] * size[1] * 3);
  pictures.forEach((picture, i) => bytes.set(croppedPicture(picture, size), i * size[0] * size[1] * 3));
  return bytes;
}
