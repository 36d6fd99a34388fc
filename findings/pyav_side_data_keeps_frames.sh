#!/usr/bin/env bash
# PyAV 18.1.0: reading `frame.side_data` keeps every frame in memory until the next garbage collection.
#
# Expected: a decoded frame leaves memory when its last reference goes, whether its side data was read or not.
# Seen: the frame and its side data refer to each other, so reference counting frees neither. 500 frames of 320 x 240
# stay (about 70 MiB). Python's collector counts objects, not bytes, and so comes late: a loop over large frames that
# looks at the display matrix of each can take gigabytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q av==18.1.0 numpy==2.2.6
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import gc

import av
import numpy as np

with av.open("plain.mp4", "w") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
    for _ in range(100):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((240, 320, 3), np.uint8), format="rgb24")))
    container.mux(stream.encode())


def left(look: bool) -> int:
    """The objects that only the garbage collector frees, after 100 frames have been decoded and dropped."""
    gc.collect()
    gc.disable()
    with av.open("plain.mp4") as container:
        for frame in container.decode(video=0):
            if look:
                frame.side_data
    del frame
    found = gc.collect()
    gc.enable()
    return found


without, looked = left(False), left(True)
print(f"objects left for the collector: {without} without, {looked} with a look at side_data of 100 frames")
assert without < 20 and looked >= 100, "PyAV has changed"
PYTHON
