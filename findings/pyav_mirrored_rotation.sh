#!/usr/bin/env bash
# PyAV 18.1.0: `frame.rotation` of a video that is only mirrored says 180 degrees.
#
# Expected: an MP4 whose display matrix mirrors the picture left to right (front cameras write it) has no rotation.
# Seen: the four mirrored orientations of the eight report the angle of another one: the mirrored picture says -180 as
# the picture that stands on its head does, and the picture that is mirrored upside down says 0 as the plain one does.
# Who turns frames by `rotation` turns mirrored videos upside down. The matrix itself (side data) tells them apart.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q av==18.1.0 numpy==2.2.6
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import struct
from pathlib import Path

import av
import numpy as np

with av.open("plain.mp4", "w") as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for _ in range(3):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
    container.mux(stream.encode())
plain = Path("plain.mp4").read_bytes()
header = plain.index(b"tkhd") + 4 + 40  # the matrix of the track: nine numbers, a b u c d v x y w
ONE = 1 << 16
MATRICES = {  # a, b, c, d of the display matrix
    "plain": (1, 0, 0, 1),
    "turned by 90": (0, 1, -1, 0),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 270": (0, -1, 1, 0),
    "mirrored left to right": (-1, 0, 0, 1),
    "mirrored upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed on the other diagonal": (0, -1, -1, 0),
}
seen = {}
for name, (a, b, c, d) in MATRICES.items():
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    Path("turned.mp4").write_bytes(plain[:header] + matrix + plain[header + 36 :])
    with av.open("turned.mp4") as container:
        seen[name] = next(container.decode(video=0)).rotation
    print(f"{name}: rotation {seen[name]}")
assert abs(seen["mirrored left to right"]) == abs(seen["turned by 180"]) == 180, "PyAV has changed"
assert seen["mirrored upside down"] == seen["plain"] == 0, "PyAV has changed"
assert seen["transposed"] in (seen["turned by 90"], seen["turned by 270"]), "PyAV has changed"
PYTHON
