"""`mistakes.json`: the wrong clips that a network is most confident of, with small pictures for the report's page.

The pictures are drawn where the clips are read, so that a report needs neither torch nor a decoder.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from stagedkd.errors import DataError
from stagedkd.spec.schema import Frames

if TYPE_CHECKING:
    from stagedkd.data.source import ClipSource  # loads torch, and a report reads the name of the file here

FILE = "mistakes.json"
CLIPS, FRAMES, SIDE = 10, 8, 112  # wrong clips, frames of each, pixels of a frame's longer side: at most
LIMIT = 600_000  # bytes of the file
QUALITIES = (80, 60, 40, 20, 1)  # of the pictures: the best one with which the file is small enough


def write_mistakes(
    folder: Path,
    source: ClipSource,
    paths: Sequence[str],
    clip_ids: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    classes: Sequence[str],
    frames: Frames | None = None,
) -> None:
    """Write the ten most confident wrong clips, the most confident first; of equals the lower clip id.

    Args:
        folder: of the artifact's files. source: gives the clips. paths: of all clips, by clip id.
        clip_ids, labels: ids and true classes of the evaluated clips, (n,).
        scores: their class probabilities, (n, N). classes: the names of the classes. frames: see `arrange_frames`.
    Raises:
        DataError: a clip can no longer be read.
    """
    confidence, predicted = scores.max(1), scores.argmax(1)
    order = np.lexsort((clip_ids, -confidence))
    rows = [row for row in order.tolist() if predicted[row] != labels[row]][:CLIPS]
    films = [_frames(source, int(clip_ids[row]), frames) for row in rows]
    facts = [
        {
            "clip": int(clip_ids[row]),
            "path": paths[int(clip_ids[row])],
            "label": classes[int(labels[row])],
            "predicted": classes[int(predicted[row])],
            "confidence": float(confidence[row]),
            "frames": len(film),
            "size": list(film[0].size[::-1]),
        }
        for row, film in zip(rows, films, strict=True)
    ]
    for quality in QUALITIES:
        pictures = ({"picture": base64.b64encode(strip(film, quality)).decode("ascii")} for film in films)
        clips = [{**fact, **picture} for fact, picture in zip(facts, pictures, strict=True)]
        text = json.dumps({"clips": clips}, indent=1, ensure_ascii=False) + "\n"
        if len(text.encode("utf-8")) <= LIMIT:
            break
    else:
        raise DataError(f"the pictures of {len(rows)} wrong clips do not fit into {LIMIT:,} bytes")
    (folder / FILE).write_text(text, "utf-8")


def _frames(source: ClipSource, clip_id: int, frames: Frames | None) -> list[Image.Image]:
    """Return frames of a clip at even distances, as the network sees them, and scaled down if they are large."""
    from stagedkd.data.views import arrange_frames  # loads torch

    (view_B3THW,) = source.views([clip_id], 1, 1)
    clip_3THW = arrange_frames(view_B3THW, [clip_id], frames)[0].cpu().numpy()
    count = min(FRAMES, clip_3THW.shape[1])
    taken = [(2 * i + 1) * clip_3THW.shape[1] // (2 * count) for i in range(count)]
    pixels_THW3 = np.rint(clip_3THW[:, taken].clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 3, 0)
    pictures = [Image.fromarray(pixels_HW3) for pixels_HW3 in pixels_THW3]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return pictures


def strip(frames: Sequence[Image.Image], quality: int) -> bytes:
    """Return frames of one size side by side as a WebP of that quality in 1..100."""
    wide, tall = frames[0].size
    whole = Image.new("RGB", (wide * len(frames), tall))
    for i, frame in enumerate(frames):
        whole.paste(frame, (i * wide, 0))
    content = io.BytesIO()
    whole.save(content, "WEBP", quality=quality, method=4)
    return content.getvalue()
