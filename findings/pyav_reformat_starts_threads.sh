#!/usr/bin/env bash
# PyAV 18.1.0: frame.reformat sets up a scaler for every frame, with a thread for every core.
#
# Expected: scaling the frames of a video costs what the pixels cost, whoever holds the scaler.
# Seen: the scaler belongs to the frame, so each frame sets up its own, and `threads` is 0, one for each core. On two
# cores a picture of 180x144 takes twice the CPU time that one VideoReformatter for all frames takes with threads=1, for
# the same bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" av==18.1.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import time
from functools import partial

import av
import numpy as np
from av.video.reformatter import VideoReformatter

dice = np.random.default_rng(0)
frames = [
    av.VideoFrame.from_ndarray(dice.integers(0, 256, (144, 180, 3), np.uint8), format="rgb24").reformat(format="yuv420p")
    for _ in range(60)
]
settings = {"width": 160, "height": 128, "format": "rgb24", "interpolation": "AREA"}
shared = partial(VideoReformatter().reformat, threads=1, **settings)


def alone(frame: av.VideoFrame) -> av.VideoFrame:
    return frame.reformat(**settings)


def seconds(scale) -> float:
    """The least CPU time of nine passes, all threads together."""
    times = []
    for _ in range(9):
        started = time.process_time()
        for frame in frames:
            scale(frame)
        times.append(time.process_time() - started)
    return min(times)


ratio = seconds(alone) / seconds(shared)
print(f"frame.reformat takes {ratio:.2f} times the CPU time of one scaler on one thread")
assert all((alone(f).to_ndarray() == shared(f).to_ndarray()).all() for f in frames), "the bytes differ"
assert ratio > 1.2, "PyAV has changed"
PYTHON
