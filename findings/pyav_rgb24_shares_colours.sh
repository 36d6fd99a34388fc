#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg's swscale): a video scaled down to rgb24 has half of the colours in each row.
#
# Expected: a frame of yuv420p holds a colour for each 2x2 pixels. Scaled down to half or less, each pixel of the result
# has a colour of its own, the mean over its area.
# Seen: two neighbouring pixels of the result share one colour difference, whatever the scale and the interpolation. To
# gbrp, the same in planes, each pixel keeps its own; so it does for a source of yuv444p.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q uv
"$folder/env/bin/uv" pip install -q --python "$folder/env/bin/python" av==18.1.0 numpy
"$folder/env/bin/python" - <<'PYTHON'
import av
import numpy as np

HEIGHT, WIDTH, LESS = 240, 320, 4
dice = np.random.default_rng(0)
# Blocks of LESS pixels of one colour, with a grey of their own: the scaled picture has one block in each pixel.
luma = np.full((HEIGHT, WIDTH), 128, np.uint8)
blocks = dice.integers(64, 192, (2, HEIGHT // LESS, WIDTH // LESS), np.uint8).repeat(LESS, 1).repeat(LESS, 2)
whole = av.VideoFrame.from_ndarray(np.stack([luma, *blocks]), format="yuv444p")
halved = whole.reformat(format="yuv420p", interpolation="AREA")  # exact: a block is larger than 2x2


def pairs(frame: av.VideoFrame, form: str) -> tuple[float, float]:
    """The mean difference of red between the two pixels of a pair, and between neighbours of two pairs."""
    scaled = frame.reformat(width=WIDTH // LESS, height=HEIGHT // LESS, format=form, interpolation="AREA")
    red_HW = scaled.to_ndarray()[..., 0].astype(float)
    steps = np.abs(np.diff(red_HW, axis=1))
    return float(steps[:, 0::2].mean()), float(steps[:, 1::2].mean())


cases = {(name, form) for name in ("yuv420p", "yuv444p") for form in ("rgb24", "gbrp")}
for name, form in sorted(cases):
    within, between = pairs({"yuv420p": halved, "yuv444p": whole}[name], form)
    print(f"{name} to {form}: red differs by {within:.1f} within pairs of pixels, by {between:.1f} between pairs")
    shares = (name, form) == ("yuv420p", "rgb24")
    assert (within < 0.05 * between) if shares else (within > 0.5 * between), "PyAV or swscale has changed"
PYTHON
