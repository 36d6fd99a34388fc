// What the page shows of the answers. Names of classes come from a file, so they are set as text, never as HTML.

const ROWS = 6; // classes of the timeline
const BARS = 5;
const ROW_HEIGHT = 30;

const element = (id) => document.getElementById(id);
const percent = (chance) => `${(100 * chance).toFixed(1)}%`;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Indices of the likeliest classes, best first; ties go to the earlier class. */
export function top(probabilities, count) {
  return [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a] || a - b).slice(0, count);
}

function made(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

/** The bars of one window. */
export function drawBars(classes, { start, end, probabilities }) {
  const best = top(probabilities, BARS);
  element("now").textContent =
    `${start.toFixed(1)} to ${end.toFixed(1)} s: ${classes[best[0]]}, ${percent(probabilities[best[0]])}`;
  const items = best.map((index) => {
    const [item, track, fill] = [made("li", ""), made("div", "track"), made("div", "fill")];
    fill.style.width = percent(probabilities[index]);
    track.append(fill);
    item.append(made("span", "label", classes[index]), made("span", "chance", percent(probabilities[index])), track);
    return item;
  });
  element("bars").replaceChildren(...items);
}

/** Add a line to the table, and remove the first ones beyond `most`. */
export function addRow(classes, { start, end, probabilities }, most) {
  const [best] = top(probabilities, 1);
  const row = document.createElement("tr");
  const cells = [`${start.toFixed(2)} to ${end.toFixed(2)}`, classes[best], percent(probabilities[best])];
  row.append(...cells.map((text) => made("td", "", text)));
  element("rows").append(row);
  if (element("rows").children.length > most) element("rows").firstChild.remove();
}

/** One picture of a clip, as the student gets it. */
export function drawSeen(bytes, [frames, height, width]) {
  const canvas = element("seen");
  Object.assign(canvas, { width, height, hidden: false });
  element("seen-text").hidden = false;
  const image = new ImageData(width, height);
  const last = bytes.subarray((frames - 1) * height * width * 3);
  for (let from = 0, to = 0; from < last.length; from += 3, to += 4) {
    image.data.set(last.subarray(from, from + 3), to);
    image.data[to + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A row for each of the likeliest classes; the more of a column is filled, the likelier the class was then. */
export function drawTimeline(classes, windows, every) {
  const canvas = element("timeline");
  const most = classes.map((_, i) => Math.max(0, ...windows.map((each) => each.probabilities[i])));
  const shown = top(most, ROWS);
  canvas.style.height = `${(windows.length ? shown.length : 1) * ROW_HEIGHT + 24}px`;
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = "14px system-ui, sans-serif";
  if (!windows.length) return;
  const left = Math.min(160, width / 3);
  const first = windows[0].start;
  const seconds = Math.max(windows[windows.length - 1].start + every - first, every);
  const x = (time) => left + ((time - first) / seconds) * (width - left - 4);
  shown.forEach((index, row) => drawRow(context, { classes, windows, every, index, x, left, y: row * ROW_HEIGHT }));
  drawAxis(context, { first, seconds, x, y: shown.length * ROW_HEIGHT + 16 });
}

function drawRow(context, { classes, windows, every, index, x, left, y }) {
  context.fillStyle = colour("--ink");
  context.textAlign = "left";
  context.fillText(shortened(context, classes[index], left - 12), 0, y + ROW_HEIGHT / 2 + 3);
  const full = ROW_HEIGHT - 6;
  for (const [number, { start, probabilities }] of windows.entries()) {
    const end = windows[number + 1]?.start ?? start + every;
    const wide = Math.max(1, x(end) - x(start) - (x(end) - x(start) > 4 ? 1 : 0));
    context.fillStyle = colour("--track");
    context.fillRect(x(start), y, wide, full);
    context.globalAlpha = top(probabilities, 1)[0] === index ? 1 : 0.45;
    context.fillStyle = colour("--accent");
    context.fillRect(x(start), y + full * (1 - probabilities[index]), wide, full * probabilities[index]);
    context.globalAlpha = 1;
  }
}

function drawAxis(context, { first, seconds, x, y }) {
  context.fillStyle = colour("--dim");
  context.font = "12px system-ui, sans-serif";
  const step = [0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800].find((each) => seconds / each <= 8) ?? 3600;
  for (let time = Math.ceil(first / step) * step; time <= first + seconds - step / 4; time += step) {
    context.textAlign = time === first ? "left" : "center";
    context.fillText(`${Number(time.toFixed(1))} s`, x(time), y);
  }
}

function shortened(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let kept = text;
  while (kept && context.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}
