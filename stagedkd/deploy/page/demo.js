// The page: loads the student, lets it reproduce the stored answer, then runs it on a file or the camera.
// `window.stagedkdResults` holds all that is shown, for tests and for the console of the browser (docs/use.md).

import { addRow, drawBars, drawSeen, drawTimeline } from "./draw.js";
import { clipBytes, clipFrames, ownLength, windowsOf } from "./frames.js";
import { FileVideo, Grabber, openCamera, Refusal, watchCamera } from "./video.js";

const FORMAT = "stagedkd demo 1";
const RELOAD = "Reload the page without the browser's cache, or write the demo again.";
const ASSUMED_STEP = 1 / 30; // seconds between two frames of the camera, until two were seen
const MOST_SECONDS = 60; // of the camera's frames that are kept
const MOST_WINDOWS = 600; // of the camera that are shown

const element = (id) => document.getElementById(id);
const results = {
  state: "loading", backend: "wasm", check: null, source: "", windows: [], clip: null, notes: [], problem: "",
};
window.stagedkdResults = results;
let student = null;
let session = null; // what is being watched: { stopped, end, close, finished }
let calls = 0; // of `watch`

/** The network in its worker. */
class Network {
  constructor() {
    // The worker begins as a blob, so that it inherits the policy of this page, which forbids to load from elsewhere.
    const code = `import ${JSON.stringify(new URL("./worker.js", import.meta.url).href)};`;
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    this.worker = new Worker(url, { type: "module" });
    this.waiting = new Map();
    this.sent = 0;
    this.worker.onmessage = ({ data }) => this.settle(data);
    this.worker.onerror = (error) => {
      for (const id of this.waiting.keys()) this.settle({ id, error: error.message || "the worker cannot be loaded" });
    };
  }

  settle({ id, value, error }) {
    const { resolve, reject } = this.waiting.get(id);
    this.waiting.delete(id);
    if (error === undefined) resolve(value);
    else reject(new Refusal(error));
  }

  ask(question) {
    const id = this.sent++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, ...question });
    });
  }

  async logits(frames, shape) {
    return (await this.ask({ kind: "run", frames, shape })).logits;
  }
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((each) => Math.exp(each - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((each) => each / sum);
}

async function fetched(name, form) {
  // A plain server says nothing about caches, and a browser may then keep the files of an earlier demo.
  const response = await fetch(new URL(name, import.meta.url), { cache: "no-store" });
  if (!response.ok) throw new Refusal(`${name} cannot be loaded: ${response.status}. Write the demo again.`);
  return response[form]();
}

/** Load everything, and compare the stored answer. Returns the student, or throws a refusal. */
async function load() {
  const [card, demo] = await Promise.all([fetched("student.json", "json"), fetched("demo.json", "json")]);
  if (demo.format !== FORMAT) throw new Refusal(`demo.json is of another version than this page. ${RELOAD}`);
  describe(card);
  const network = new Network();
  const [model, example] = await Promise.all([
    fetched("student.onnx", "arrayBuffer"), fetched(demo.example.file, "arrayBuffer"),
  ]);
  const { threads } = await network.ask({ kind: "open", model: new Uint8Array(model) });
  const found = await network.logits(new Uint8Array(example), demo.example.shape);
  const same = found.length === demo.example.logits.length && found.length === card.classes.length;
  const difference = same ? Math.max(...found.map((each, i) => Math.abs(each - demo.example.logits[i]))) : Infinity;
  results.check = { difference, tolerance: demo.tolerance, passed: difference <= demo.tolerance, threads };
  if (!results.check.passed) {
    throw new Refusal(
      `This browser does not reproduce the stored answer: a logit differs by ${difference.toPrecision(2)}, and ` +
      `${demo.tolerance} is allowed. So no class is shown. Use another browser, or write the demo again.`);
  }
  return { card, network, demo };
}

function describe(card) {
  document.title = `${card.name}: stagedkd demo`;
  element("name").textContent = card.name;
  const facts = [`${card.classes.length} classes`];
  if (card.parameters) facts.push(`${card.parameters.toLocaleString("en")} parameters`);
  if (card.accuracy) {
    const { top1, split, clips } = card.accuracy;
    facts.push(`${(100 * top1).toFixed(1)}% right on ${clips} clips of the ${split} split`);
  }
  element("facts").textContent = `${facts.join(", ")}. It runs in this page. No picture leaves this machine.`;
}

function showCheck(state, text) {
  element("check").dataset.state = state;
  element("check").textContent = text;
}

function showProblem(text) {
  results.problem = text;
  element("problem").textContent = text;
  element("problem").hidden = !text;
}

function note(text) {
  if (results.notes.includes(text)) return;
  results.notes.push(text);
  const item = document.createElement("li");
  item.textContent = text;
  element("notes").append(item);
}

/** The seconds between two windows. */
function everySeconds() {
  const every = Number(element("every").value);
  if (!(every >= 0.1 && every <= 60)) throw new Refusal("Give a number of seconds from 0.1 to 60.");
  return every;
}

/** Ask the student about one clip, and show what it says. `pictures` are scaled already. */
async function look(pictures, start, end, every, live) {
  const { card, network } = student;
  const shape = [pictures.length, ...card.picture.size, 3];
  const frames = clipBytes(pictures, card.picture.size);
  const logits = await network.logits(frames, shape);
  if (live.stopped) return;
  const answer = { start, end, logits, probabilities: softmax(logits) };
  results.windows.push(answer);
  results.clip = frames;
  if (results.windows.length > MOST_WINDOWS) results.windows.shift();
  drawBars(card.classes, answer);
  addRow(card.classes, answer, MOST_WINDOWS);
  drawSeen(frames, shape);
  live.draw = () => drawTimeline(card.classes, results.windows, every);
  live.draw();
}

/** Show the windows of a file, as `stagedkd predict --every` takes them. The last picture stays. */
async function watchFile(file, live) {
  const every = everySeconds();
  const grabber = new Grabber(element("video"), student.card.picture.resize, true);
  const video = new FileVideo(element("video"), grabber);
  live.close = () => video.close();
  element("source").textContent = file.name;
  await video.open(file);
  element("source").textContent = `${file.name}: ${video.count} frames, ${(1 / video.step).toFixed(2)} a second`;
  const kept = new Map();
  for (const { start, end, indices } of windowsOf(student.card.frames, video.times, every)) {
    for (const index of new Set(indices)) {
      if (live.stopped) return;
      if (!kept.has(index)) kept.set(index, await video.picture(index));
    }
    await look(indices.map((index) => kept.get(index)), start, end, every, live);
    for (const index of kept.keys()) if (index < indices[0]) kept.delete(index);
    if (!video.even) {
      note("The distance of the frames varies, so the student may see other frames than in stagedkd predict. "
        + "Convert the video to a constant frame rate.");
    }
  }
}

/** Show windows of the camera, the last frames each, as `stagedkd predict --camera` does, until it is stopped. */
async function watchLive(live) {
  const every = everySeconds();
  const { frames, picture } = student.card;
  live.close = await openCamera(element("video"));
  element("source").textContent = "The camera";
  const grabber = new Grabber(element("video"), picture.resize, false);
  const kept = [];
  let [due, busy] = [0, false];
  await new Promise((resolve, reject) => {
    live.end = resolve;
    watchCamera(element("video"), grabber, (moment, scaled) => {
      if (live.stopped) return false;
      kept.push({ moment, scaled });
      const last = kept.length - 1;
      const step = (moment - kept[0].moment) / Math.max(1, last) || ASSUMED_STEP;
      const seconds = Math.min(MOST_SECONDS, ownLength(frames, step) || Math.max(every, 1));
      while (kept.length > 1 && moment + step - kept[1].moment >= seconds) kept.shift();
      const whole = moment + step - kept[0].moment >= seconds - step / 2;
      if (moment < due || !whole || busy) return true;
      [due, busy] = [moment + every, true];
      const indices = clipFrames(frames, kept.map((each) => each.moment));
      const pictures = indices.map((index) => kept[index].scaled);
      look(pictures, kept[0].moment, moment + step, every, live).then(() => { busy = false; }, reject);
      return true;
    });
  }).finally(live.close);
}

/** Watch one source, after the one before has ended: two would move one video. */
async function watch(source, work) {
  const call = ++calls;
  results.state = "running";
  stop();
  await session?.finished;
  if (call !== calls) return; // another source was chosen meanwhile
  session?.close();
  session = { stopped: false, end: () => {}, close: () => {}, draw: () => {} };
  Object.assign(results, { source, windows: [], clip: null, notes: [] });
  for (const id of ["rows", "bars", "notes"]) element(id).replaceChildren();
  element("now").textContent = "No window yet.";
  drawTimeline(student.card.classes, [], 1);
  showProblem("");
  element("stop").disabled = false;
  session.finished = work(session).catch((error) => {
    showProblem(error instanceof Refusal ? error.message : `A fault of this page: ${error}`);
  });
  await session.finished;
  if (call !== calls) return;
  results.state = results.problem ? "failed" : "done";
  element("stop").disabled = true;
}

function stop() {
  if (!session) return;
  session.stopped = true;
  session.end();
}

async function start() {
  try {
    student = await load();
  } catch (error) {
    results.state = "refused";
    showCheck("bad", error instanceof Refusal ? error.message : `The student cannot be loaded: ${error}`);
    return;
  }
  const { check } = results;
  const threads = check.threads === 1 ? "one thread" : `${check.threads} threads`;
  showCheck("good",
    `The stored answer is reproduced: logits differ by up to ${check.difference.toPrecision(2)}, and ` +
    `${check.tolerance} is allowed. WebAssembly, ${threads}.`);
  results.state = "ready";
  for (const id of ["choose", "camera"]) element(id).disabled = false;
  element("choose").onclick = () => element("file").click();
  element("file").onchange = () => {
    const [file] = element("file").files;
    if (file) watch(file.name, (live) => watchFile(file, live));
    element("file").value = "";
  };
  element("camera").onclick = () => watch("camera", watchLive);
  element("stop").onclick = stop;
  window.onresize = () => session?.draw();
}

start();
