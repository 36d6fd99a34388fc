"""`stagedkd init`: write a first spec for a folder of the user's videos, fitted to its content."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from stagedkd.data.address import Address
from stagedkd.data.decode import inspect
from stagedkd.data.index import Entry, require_classes, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Folder

STEPS = 480  # training steps of the teacher and of each hop: enough to see an effect, minutes on two cores
PARTS = ((5, 1), (4, 1), (3, 1), (3, 0), (2, 0))  # folds and test folds, the best first


@dataclass(frozen=True)
class Draft:
    """A spec as text, with the number of clips, the classes and the usual number of frames of the videos."""

    text: str
    clips: int
    classes: tuple[str, ...]
    frames: int


def draft(folder: Path, data_dir: Path, root: Path) -> Draft:
    """Inspect a folder of videos (a folder for each class, or a table path,label[,group]) and write a spec for it.

    Raises:
        UsageError, DataError: the folder or its videos are missing, or a class has too few to train and to validate.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="name a folder that has a folder of videos for each class")
    table = _table(folder)
    path = _written_path(table or folder, data_dir, root)
    data: Csv | Folder = Csv(kind="csv", path=path) if table else Folder(kind="folder", path=path)
    listing = list_clips(data, data_dir)
    base, entries, classes = listing.root, list(listing.entries), listing.classes
    if len(classes) < 2:
        hint = "put the videos of each class into a folder of its name: CLASS/CLIP.mp4"
        raise DataError(f"{folder} has {len(classes)} class, but two or more are needed", hint=hint)
    data, train = _split(data, entries, classes)
    frames = _usual_frames(base, entries)
    return Draft(_text(data, folder, entries, classes, train, frames), len(entries), classes, frames)


def _table(folder: Path) -> Path | None:
    """Find a table of clips in the folder, or None."""
    for path in sorted(folder.glob("*.csv")):
        head = path.read_text("utf-8-sig", errors="replace").splitlines()[:1]
        if head and {"path", "label"} <= {name.strip() for name in head[0].split(",")}:
            return path
    return None


def _written_path(path: Path, data_dir: Path, root: Path) -> str:
    """Return the path to write in the spec: relative to the data root if both are in the project, else absolute."""
    path, data_dir = path.resolve(), data_dir.resolve()
    if path.is_relative_to(data_dir) or root.resolve() in {*path.parents} & {data_dir, *data_dir.parents}:
        return Path(os.path.relpath(path, data_dir)).as_posix()
    return path.as_posix()


def _split(data: Csv | Folder, entries: list[Entry], classes: Sequence[str]) -> tuple[Csv | Folder, int]:
    """Return the data section with the first of PARTS that has every class in training and in validation, and the
    number of training clips."""
    if any(entry.split for entry in entries):
        return data, sum(entry.split == "train" for entry in entries)
    for folds, test_folds in PARTS:
        candidate = data.model_copy(update={"folds": folds, "test_folds": test_folds})
        placed = split_entries(entries, candidate)
        if all({e.label for e in placed if e.split == split} == set(classes) for split in ("train", "val")):
            return candidate, sum(entry.split == "train" for entry in placed)
    few, count = Counter(e.label for e in entries if e.label).most_common()[-1]
    require_classes(split_entries(entries, data), classes)
    raise DataError(
        f"class {few} has {count} clips in too few groups", hint="add videos: each class needs two groups or more"
    )


def _usual_frames(base: Path, entries: Sequence[Entry]) -> int:
    """Return the median number of decodable frames of at most 7 clips spread over the set."""
    step = max(1, len(entries) // 7)
    counts = [inspect(Address.read(base, entry.path)).frames for entry in entries[::step][:7]]
    counts = [count for count in counts if count]
    if not counts:
        raise DataError(f"none of the {min(7, len(entries))} videos below {base} that were tried can be decoded")
    return int(median(counts))


def _text(
    data: Csv | Folder, folder: Path, entries: Sequence[Entry], classes: Sequence[str], train: int, frames: int
) -> str:
    """Return the text of the spec."""
    clip_frames = max(2, min(16, frames))
    stride = max(1, min(8, frames // clip_frames))
    batch = max(4, min(32, 2 ** int(math.log2(max(4, train / 3)))))
    epochs = max(20, min(200, round(STEPS / math.ceil(train / batch))))
    groups = len({entry.group for entry in entries})
    fields = [f"kind: {data.kind}", f"path: {_scalar(data.path)}"]
    fields += [f"folds: {data.folds}"] if data.folds != 5 else []
    fields += [f"test_folds: {data.test_folds}"] if data.test_folds != 1 else []
    more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
    named = ", ".join(_plain(name) for name in classes[:12]) + more
    grouping = (
        f"{groups} groups, none of them in two splits"
        if groups < len(entries)
        else "every video is its own group: if people or scenes repeat, list them in a csv with a column group"
    )
    return f"""\
# {_plain(folder.resolve().name)}: {len(entries)} clips of {len(classes)} classes ({named}),
# {grouping}. Every field: docs/spec.md. Check it with: stagedkd check THIS_FILE
data: {{{", ".join(fields)}}}
clip: {{frames: {clip_frames}, stride: {stride}, size: 64}}      # of about {frames} frames; use size 112 on a GPU
labels: {{clean: 1.0}}                       # lower it to see what a teacher gains with few labels
train: {{batch: {batch}, lr: 2e-3, warmup_epochs: 2}}

# A teacher pretrained on Kinetics is far better; it is downloaded and needs clip.size 112:
# teacher: {{arch: r2plus1d_18, weights: KINETICS400_V1, epochs: 10, train: {{lr: 1e-4}}}}
teacher: {{arch: resnet3d, width: 16, blocks: [1, 1, 1], epochs: {epochs}}}
cascade: []                                # or auto, or fractions of the teacher's parameters such as [0.3]
student: {{arch: resnet3d, width: 8, blocks: [1, 1, 1], epochs: {epochs}}}
recipe: staged                             # the method: `stagedkd recipes` lists them
control: ce                                # the same student without a teacher, for comparison
"""


def _scalar(text: str) -> str:
    """Return a YAML scalar, quoted if needed."""
    return text if re.fullmatch(r"[A-Za-z_./][\w./ -]*(?<! )", text) else json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """Return a name for a comment, on one line."""
    return " ".join(text.split()) or "?"
