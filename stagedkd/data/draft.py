"""`stagedkd init`: a first spec for a folder of one's own videos, fitted to what is in it."""

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

from stagedkd.data.decode import decode
from stagedkd.data.index import Entry, require_classes, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Csv, Folder

STEPS = 480  # training steps of the teacher and of each hop: enough to see something, minutes on two cores
PARTS = ((5, 1), (4, 1), (3, 1), (3, 0), (2, 0))  # folds and test folds, from the best wish down


@dataclass(frozen=True)
class Draft:
    """A spec as text, and what it was made of: clips, classes, and the usual number of frames."""

    text: str
    clips: int
    classes: tuple[str, ...]
    frames: int


def draft(folder: Path, data_dir: Path, root: Path) -> Draft:
    """Look at a folder of videos (one folder a class, or a table path,label[,group] in it) and write a spec for it.

    Raises:
        UsageError, DataError: no such folder, no videos, or too few of a class to train and to validate.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", hint="name a folder with one folder of videos a class")
    table = _table(folder)
    path = _written_path(table or folder, data_dir, root)
    data: Csv | Folder = Csv(kind="csv", path=path) if table else Folder(kind="folder", path=path)
    found = list_clips(data, data_dir)
    base, entries, classes = found.root, list(found.entries), found.classes
    if len(classes) < 2:
        raise DataError(f"{folder} has {len(classes)} class", hint="one folder a class, videos inside: CLASS/CLIP.mp4")
    data, train = _split(data, entries, classes)
    frames = _usual_frames(base, entries)
    return Draft(_text(data, folder, entries, classes, train, frames), len(entries), classes, frames)


def _table(folder: Path) -> Path | None:
    """A table of clips in the folder, if there is one."""
    for path in sorted(folder.glob("*.csv")):
        head = path.read_text("utf-8-sig", errors="replace").splitlines()[:1]
        if head and {"path", "label"} <= {name.strip() for name in head[0].split(",")}:
            return path
    return None


def _written_path(path: Path, data_dir: Path, root: Path) -> str:
    """As it stands in the spec: relative to the data root where both are in the project, else absolute."""
    path, data_dir = path.resolve(), data_dir.resolve()
    if path.is_relative_to(data_dir) or root.resolve() in {*path.parents} & {data_dir, *data_dir.parents}:
        return Path(os.path.relpath(path, data_dir)).as_posix()
    return path.as_posix()


def _split(data: Csv | Folder, entries: list[Entry], classes: Sequence[str]) -> tuple[Csv | Folder, int]:
    """The first of PARTS with every class in training and in validation, and the number of training clips."""
    if any(entry.split for entry in entries):
        return data, sum(entry.split == "train" for entry in entries)
    for folds, test_folds in PARTS:
        made = data.model_copy(update={"folds": folds, "test_folds": test_folds})
        placed = split_entries(entries, made)
        if all({e.label for e in placed if e.split == split} == set(classes) for split in ("train", "val")):
            return made, sum(entry.split == "train" for entry in placed)
    few, count = Counter(e.label for e in entries if e.label).most_common()[-1]
    require_classes(split_entries(entries, data), classes)
    raise DataError(f"class {few} has {count} clips in too few groups", hint="two groups of each class are the least")


def _usual_frames(base: Path, entries: Sequence[Entry]) -> int:
    """Median number of decodable frames of a few clips, spread over the set."""
    step = max(1, len(entries) // 7)
    counts = [len(decode(base / entry.path, 16).frames_THWC) for entry in entries[::step][:7]]
    counts = [count for count in counts if count]
    if not counts:
        raise DataError(f"none of {min(7, len(entries))} videos tried below {base} can be decoded")
    return int(median(counts))


def _text(
    data: Csv | Folder, folder: Path, entries: Sequence[Entry], classes: Sequence[str], train: int, frames: int
) -> str:
    taken = max(2, min(16, frames))
    stride = max(1, min(8, frames // taken))
    batch = max(4, min(32, 2 ** int(math.log2(max(4, train / 3)))))
    epochs = max(20, min(200, round(STEPS / math.ceil(train / batch))))
    groups = len({entry.group for entry in entries})
    fields = [f"kind: {data.kind}", f"path: {_scalar(data.path)}"]
    fields += [f"folds: {data.folds}"] if data.folds != 5 else []
    fields += [f"test_folds: {data.test_folds}"] if data.test_folds != 1 else []
    more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
    shown = ", ".join(_plain(name) for name in classes[:12]) + more
    grouping = (
        f"{groups} groups, none of them in two splits"
        if groups < len(entries)
        else "every video is its own group: if people or scenes repeat, list them in a csv with a column group"
    )
    return f"""\
# {_plain(folder.resolve().name)}: {len(entries)} clips of {len(classes)} classes ({shown}),
# {grouping}. Every field: docs/spec.md. Check it with: stagedkd check THIS_FILE
data: {{{", ".join(fields)}}}
clip: {{frames: {taken}, stride: {stride}, size: 64}}      # of about {frames} frames; size 112 and more on a GPU
labels: {{clean: 1.0}}                       # lower it to see what a teacher is worth with few labels
train: {{batch: {batch}, lr: 2e-3, warmup_epochs: 2}}

# With the network at hand, a teacher that has seen Kinetics is worth far more; it wants clip.size 112:
# teacher: {{arch: r2plus1d_18, weights: KINETICS400_V1, epochs: 10, train: {{lr: 1e-4}}}}
teacher: {{arch: resnet3d, width: 16, blocks: [1, 1, 1], epochs: {epochs}}}
cascade: []                                # or auto, or shares of the teacher's parameters such as [0.3]
student: {{arch: resnet3d, width: 8, blocks: [1, 1, 1], epochs: {epochs}}}
recipe: staged                             # the method: `stagedkd recipes` lists them
control: ce                                # the same student without a teacher, for comparison
"""


def _scalar(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z_./][\w./ -]*(?<! )", text) else json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """A name inside a comment: on one line."""
    return " ".join(text.split()) or "?"
