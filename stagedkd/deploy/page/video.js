// The pictures of a video file, frame by frame, and those of the camera.

import { scaledPicture } from "./frames.js";

const PATIENCE = 10_000; // milliseconds that a frame may take
const PAUSE = 10; // milliseconds between two looks at what is shown
const SHORTEST_STEP = 1 / 250; // seconds between two frames
const PROBED = [0, 0.19, 0.41, 0.62, 0.83]; // parts of a video where the distance of frames is measured

/** What a user can do something about. Its message is shown. */
export class Refusal extends Error {}

/** Takes the picture that a video element shows, scaled to the student's shorter side; see `scaledPicture`. */
export class Grabber {
  constructor(video, shorter, paired) {
    Object.assign(this, { video, shorter, paired });
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  }

  picture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.context.drawImage(this.video, 0, 0, width, height);
    return scaledPicture(this.context.getImageData(0, 0, width, height), this.shorter, this.paired);
  }
}

/** A video file. Browsers do not tell its frames, so their distance is measured; `even` is false if it varies. */
export class FileVideo {
  constructor(video, grabber) {
    Object.assign(this, { video, grabber, first: 0, step: 0, count: 0, even: true });
  }

  /** Open the file by a blob URL: over a plain server, a seek can leave the picture where it was, without an error. */
  async open(file) {
    if (!window.VideoFrame) throw new Refusal("This browser does not tell which frame it shows. Use a newer one.");
    this.url = URL.createObjectURL(file);
    this.video.srcObject = null;
    this.video.src = this.url;
    await event(this.video, "loadeddata", `This browser cannot decode ${file.name}. Convert it to H.264 or VP9.`);
    if (!Number.isFinite(this.video.duration)) {
      this.video.currentTime = 1e7; // a recording of a browser tells its length only when one goes to its end
      await event(this.video, "seeked", `The length of ${file.name} cannot be found.`);
    }
    await this.measure();
  }

  close() {
    this.video.removeAttribute("src");
    this.video.load();
    URL.revokeObjectURL(this.url);
  }

  /** The time of each frame from the first one on, in seconds. */
  get times() {
    return Array.from({ length: this.count }, (_, index) => index * this.step);
  }

  /** Find the first frame, the seconds between two frames, and the number of frames. */
  async measure() {
    let last = 0;
    for (let tries = 0; tries < 3 && last <= this.first; tries++) {
      last = await this.frameAt(Math.max(0, this.video.duration - 1e-3));
      this.first = await this.frameAt(0);
    }
    if (last <= this.first) {
      Object.assign(this, { step: 0.04, count: 1 });
      return;
    }
    const gaps = [];
    for (const part of PROBED) gaps.push(await this.gap(this.first + part * (last - this.first)));
    this.step = Math.min(...gaps);
    this.even = Math.max(...gaps) - this.step <= this.allowed;
    for (let ahead = 2; this.even && this.first + ahead * this.step < last; ahead *= 2) {
      const shown = await this.frameAt(this.first + (ahead + 0.5) * this.step);
      const steps = (shown - this.first) / this.step;
      this.even = Math.round(steps) >= 1 && Math.abs(steps - Math.round(steps)) < 0.25;
      if (this.even) this.step = (shown - this.first) / Math.round(steps);
    }
    this.count = Math.round((last - this.first) / this.step) + 1;
    this.step = (last - this.first) / (this.count - 1);
  }

  /** Seconds by which a frame may be early or late: files may round times to milliseconds. */
  get allowed() {
    return Math.max(this.step / 4, 1.1e-3);
  }

  /** The seconds from the frame at a time to the next one. */
  async gap(time) {
    const from = await this.frameAt(time);
    let next = from;
    for (let ahead = SHORTEST_STEP; next <= from; ahead += SHORTEST_STEP) next = await this.frameAt(from + ahead);
    return next - from;
  }

  /** The time of the frame that is shown at a time, when it has been the same twice. */
  async frameAt(time) {
    await this.seek(time);
    let [before, shown] = [NaN, await this.shown()];
    for (let tries = 0; tries < 20 && before !== shown; tries++) {
      await pause(PAUSE);
      [before, shown] = [shown, await this.shown()];
    }
    return shown;
  }

  /** The scaled picture of a frame, by its index. If another frame stays there, the frames are not even. */
  async picture(index) {
    const wanted = this.first + index * this.step;
    const misplaced = (shown) => Math.abs(shown - wanted) > this.allowed;
    await this.seek(wanted + this.step / 2);
    for (let wait = PAUSE; wait < 300 && misplaced(await this.shown()); wait *= 2) await pause(wait);
    if (misplaced(await this.shown())) this.even = false;
    return this.grabber.picture();
  }

  /** Go to a time. A video may begin after 0, as converted ones do: asked for 0, the browser goes to its beginning. */
  async seek(time) {
    const target = Math.min(time, this.video.duration);
    const arrived = event(this.video, "seeked", `The browser cannot read the video at ${time.toFixed(3)} s.`);
    this.video.currentTime = target;
    await arrived;
    if (target > 0 && Math.abs(this.video.currentTime - target) > 1e-3) {
      throw new Refusal(`The browser went to ${this.video.currentTime} s, not to ${target.toFixed(3)} s.`);
    }
  }

  /** The time of the frame that the video shows. It is asked for: a callback of requestVideoFrameCallback often tells
   * of the frame before a seek, or does not come. */
  async shown() {
    for (let waited = 0; waited < PATIENCE; waited += PAUSE) {
      try {
        const frame = new VideoFrame(this.video);
        const seconds = frame.timestamp / 1e6;
        frame.close();
        return seconds;
      } catch (error) {
        if (error.name !== "InvalidStateError") throw error;
        await pause(PAUSE); // there is no frame yet
      }
    }
    throw new Refusal(`The browser shows no frame at ${this.video.currentTime.toFixed(3)} s. Choose the file again.`);
  }
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Open the camera. Returns a function that closes it. */
export async function openCamera(video) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Refusal("Browsers give pages the camera only on localhost or over HTTPS. Open this page there.");
  }
  if (!video.requestVideoFrameCallback) {
    throw new Refusal("This browser does not tell when the camera has a new frame. Use a newer one.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: false });
  } catch (error) {
    throw new Refusal(`The camera cannot be opened: ${error.message}. Allow it for this page, or connect one.`);
  }
  video.srcObject = stream;
  await video.play();
  return () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
}

/** Call `take(seconds, picture)` for every frame of the camera, until it returns false. Seconds begin at 0. */
export function watchCamera(video, grabber, take) {
  let beginning = null;
  const next = (now, metadata) => {
    const moment = (metadata.captureTime ?? now) / 1000;
    beginning ??= moment;
    if (take(moment - beginning, grabber.picture())) video.requestVideoFrameCallback(next);
  };
  video.requestVideoFrameCallback(next);
}

/** Wait for an event of a video. Its error, or too long a wait, is a refusal with this message. */
async function event(video, name, message) {
  const done = new AbortController();
  const happened = new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { signal: done.signal });
    video.addEventListener("error", () => reject(new Refusal(message)), { signal: done.signal });
  });
  await within(happened, message).finally(() => done.abort());
}

async function within(promise, message) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Refusal(message)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}
