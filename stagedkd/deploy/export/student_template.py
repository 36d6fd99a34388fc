"""Predict the classes of videos: python student.py VIDEO...

Needs torch, numpy and PyAV (`pip install torch numpy av`) and the files student.pt2 and student.json beside it, nothing
else. stagedkd wrote it; `Student("folder").predict("video.mp4")` gives the same numbers as stagedkd does.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import torch
from torch.nn.functional import interpolate


class Student:
    def __init__(self, folder=Path(__file__).parent):
        self.card = json.loads(Path(folder, "student.json").read_text("utf-8"))
        self.classes, self.frames, self.picture = (self.card[name] for name in ("classes", "frames", "picture"))
        self.network = torch.export.load(Path(folder, "student.pt2")).module()

    def predict(self, path, clips=None, crops=None):
        """Probabilities of the classes, the mean over the views; clips and crops are those of the evaluation."""
        views = self.views(path, clips or self.card["views"][0], crops or self.card["views"][1])
        return torch.stack([self.logits(view).softmax(0) for view in views]).mean(0).numpy()

    def logits(self, frames_THW3):
        """Logits (N,) of frames, uint8 (T, height, width, 3), which `views` gives."""
        pair = torch.stack([frames_THW3, frames_THW3])  # two clips: torch takes a slow kernel for one
        with torch.inference_mode():
            return self.network(pair)[0]

    def views(self, path, clips, crops):
        """The views of a video, uint8 (T, height, width, 3) each: clips evenly in time, crops along the longer side."""
        count, times = read(path)
        wanted = [self.times_of(count, times, number, clips) for number in range(clips)]
        needed = set(np.concatenate(wanted).tolist())
        pictures = dict(read(path, needed, self.picture["resize"]))
        for indices in wanted:
            frames = torch.from_numpy(np.stack([pictures[i] for i in indices.tolist()]))
            yield from (self.crop(frames, place) for place in ([0.5] if crops == 1 else [0.0, 0.5, 1.0]))

    def times_of(self, count, times, number, clips):
        """The indices of the frames of one of the clips."""
        frames, stride, rate = self.frames["frames"], self.frames["stride"], self.frames["rate"]
        length, last = float(count), times[-1] - times[0]
        if rate:
            length = rate * (last * count / max(1, count - 1) if last > 0 else 1.0)
        if self.frames["sampler"] == "segments":
            places = (np.arange(frames) + (number + 0.5) / clips) * (length / frames)
        else:
            room = max(0.0, length - ((frames - 1) * stride + 1))
            start = room / 2 if clips == 1 else number * room / (clips - 1)
            if not rate:
                start = int(room) // 2 if clips == 1 else round(start)
            places = np.arange(frames, dtype=np.float64) * stride + start
        pads = self.frames["short"] == "pad"
        places = np.minimum(places, length - 1e-6) if pads else np.mod(places, length)
        if not rate:
            return np.minimum(np.floor(places + 1e-9).astype(np.int64), count - 1)
        since = np.asarray(times) - times[0]
        return np.maximum(np.searchsorted(since, places / rate + 1e-6, side="right") - 1, 0)

    def crop(self, frames_THW3, place):
        """Cut out the largest box of the input's shape, and scale it."""
        (height, width), (tall, wide) = self.picture["size"], frames_THW3.shape[1:3]
        if tall * width <= wide * height:
            box = tall, max(1, round(tall * width / height))
        else:
            box = max(1, round(wide * height / width)), wide
        top, left = round(place * (tall - box[0])), round(place * (wide - box[1]))
        cut = frames_THW3[:, top : top + box[0], left : left + box[1]]
        if box == (height, width):
            return cut
        pictures = cut.permute(0, 3, 1, 2)
        return interpolate(pictures, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def read(path, wanted=None, shorter_side=None):
    """Without `wanted`: the number of frames of a video, and their times. Else pairs of index and picture."""
    times, found = [], []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        scaler = av.video.reformatter.VideoReformatter()
        for index, frame in enumerate(container.decode(stream)):
            times.append(frame.time or 0.0)
            if wanted and index in wanted:
                scale = shorter_side / max(1, min(frame.height, frame.width))
                height, width = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
                how = {"format": "rgb24", "interpolation": "AREA", "threads": 1}
                picture = scaler.reformat(frame, width=width, height=height, **how).to_ndarray()
                found.append((index, upright(frame, picture)))
    if not times:
        sys.exit(f"{path}: no frame can be decoded")
    return found if wanted else (len(times), times)


def upright(frame, picture):
    """Turn a picture as the display matrix of its frame says."""
    matrix = av.sidedata.sidedata.SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(matrix), "=i4").tolist()[:5]
    straight = abs(a) + abs(d) >= abs(b) + abs(c)
    picture = picture if straight else picture.transpose(1, 0, 2)
    picture = picture[:, ::-1] if (a if straight else c) < 0 else picture
    return np.ascontiguousarray(picture[::-1] if (d if straight else b) < 0 else picture)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    student = Student()
    for video in sys.argv[1:]:
        probabilities = student.predict(video)
        best = np.argsort(-probabilities, kind="stable")[:5]
        print(f"{video}: " + ", ".join(f"{student.classes[i]} {100 * probabilities[i]:.1f}%" for i in best))
