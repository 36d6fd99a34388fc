"""`stagedkd init`: write a first spec for the user's videos, fitted to what is there."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stagedkd.data.address import Address
from stagedkd.data.decode import inspect
from stagedkd.data.detect import detect
from stagedkd.data.index import UNUSED, Entry, Listing, require_classes, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.errors import DataError, Origin, SpecError, UsageError, printable
from stagedkd.spec.schema import Grouped, Videos
from stagedkd.spec.yaml import parse_yaml

PARTS = ((5, 1), (4, 1), (3, 1), (3, 0), (2, 0))  # folds and test folds, the best first
OFFICIAL = ((20, 0), (10, 0), (5, 0), (3, 0), (2, 0))  # likewise, where the test split is an official one
FEW = 50  # with fewer validation clips, the 95% interval of an accuracy of 80% is wider than 22 points

SIZE, FRAMES = 48, 8  # small enough for minutes without a GPU
PASSES = 7500  # training clips times epochs of each network: minutes without a GPU
# One clip through the trainings of teacher, student and control, in seconds on two cores of an AMD EPYC: 216 clips at
# 16 frames of 64 x 64 took 30.5 s (13.7, 10.5 and 6.3), scaled by the pixels to FRAMES frames of SIZE x SIZE.
PASS_SECONDS = 0.040


@dataclass(frozen=True)
class Draft:
    """A spec as text, with the number of clips, the classes, the usual number of frames of the videos, and notes."""

    text: str
    clips: int
    classes: tuple[str, ...]
    frames: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Content:
    """What a spec is fitted to. `placed` are the clips with their splits, `drawn` says whether folds decide them."""

    name: str
    data: Videos
    entries: Sequence[Entry]
    classes: tuple[str, ...]
    placed: Sequence[Entry]
    drawn: bool
    frames: int

    def count(self, split: str) -> int:
        """Return the number of clips of a split."""
        return sum(entry.split == split for entry in self.placed)

    @property
    def weak(self) -> bool:
        """Whether labels are missing or may be wrong."""
        return not all(entry.label and entry.trusted for entry in self.placed)


def draft(videos: Path, data_dir: Path, root: Path, spec: Path = Path("specs/videos.yaml")) -> Draft:
    """Inspect videos and write a spec for them.

    Args:
        videos: a folder of videos, or a table or list of them. data_dir: the data root. root: the project's folder.
        spec: the file that the spec is meant for, which its comments name.
    Raises:
        UsageError, DataError: there are no videos, or a class has too few to train and to validate.
    """
    data, notes = detect(videos, lambda path: _written_path(path, data_dir, root))
    listing = list_clips(data, data_dir)
    if len(listing.classes) < 2:
        hint = "put the videos of each class into a folder of its name: CLASS/CLIP.mp4"
        raise DataError(f"{videos} has {len(listing.classes)} class, but two or more are needed", hint=hint)
    data, placed = _split(data, listing)
    drawn = not any(entry.split == "val" for entry in listing.entries)
    frames = _usual_frames(listing)
    content = _Content(videos.resolve().name, data, listing.entries, listing.classes, placed, drawn, frames)
    notes += [f"note: {note}" for note in listing.notes]
    return Draft(_text(content, spec), len(listing.entries), listing.classes, frames, tuple(notes))


def _written_path(path: Path, data_dir: Path, root: Path) -> str:
    """Return the path to write in the spec: relative to the data root if both are in the project, else absolute."""
    path, data_dir, root = (
        path.parent.resolve() / path.name if path.name else path.resolve(),
        data_dir.resolve(),
        root.resolve(),
    )
    in_project = root in {path, *path.parents} and root in {data_dir, *data_dir.parents}
    written = Path(os.path.relpath(path, data_dir)) if in_project or path.is_relative_to(data_dir) else path
    try:
        return written.as_posix().encode().decode()
    except UnicodeEncodeError:
        raise UsageError(f"the name {str(path)!a} is not text in UTF-8", hint="rename the folder or file") from None


def _split(data: Videos, listing: Listing) -> tuple[Videos, list[Entry]]:
    """Return the data section with the first of PARTS that has every class in training and in validation, and the clips
    with their splits."""
    entries, classes = [e for e in listing.entries if e.split != UNUSED], listing.classes
    if all(entry.split for entry in entries) or any(entry.split == "val" for entry in entries):
        placed = split_entries(entries, data)
        require_classes(placed, classes)
        if not any(entry.split == "val" for entry in placed):
            hint = "put clips of each class into val, or leave the split of training clips empty: it is then drawn"
            raise DataError(f"no clip of {listing.root} is for validation", hint=hint)
        return data, placed
    for folds, test_folds in PARTS if isinstance(data, Grouped) else OFFICIAL:
        more = {"test_folds": test_folds} if isinstance(data, Grouped) else {}
        candidate = data.model_copy(update={"folds": folds, **more})
        placed = split_entries(entries, candidate)
        if all({e.label for e in placed if e.split == split} >= set(classes) for split in ("train", "val")):
            return candidate, placed
    few, count = Counter(e.label for e in entries if e.label).most_common()[-1]
    require_classes(split_entries(entries, data), classes)
    raise DataError(
        f"class {few} has {count} clips in too few groups", hint="add videos: each class needs two groups or more"
    )


def _usual_frames(listing: Listing) -> int:
    """Return the number of decodable frames that three of four clips have, told from at most 7 spread over the set."""
    entries = listing.entries
    step = max(1, len(entries) // 7)
    tried = [Address.read(listing.root, entry.path) for entry in entries[::step][:7]]
    footages = [inspect(address) for address in tried]
    counts = sorted(footage.frames for footage in footages if footage.frames)
    if not counts:
        first, fault = tried[0].file, footages[0].fault
        hint = "paths in a table are relative to it, or to data.videos" if fault == "missing" else ""
        raise DataError(
            f"none of the {len(tried)} clips that were tried can be read, such as {first}: {fault}", hint=hint
        )
    return counts[len(counts) // 4]


def _text(content: _Content, spec: Path) -> str:
    """Return the text of the spec."""
    train, classes = content.count("train"), content.classes
    frames = max(2, min(FRAMES, content.frames))
    stride = max(1, min(8, content.frames // frames))
    batch = max(4, min(32, 2 ** int(math.log2(max(4, train / 3)))))
    epochs = max(6 if content.weak else 1, min(200, round(PASSES / train)))  # room for a few phases
    more = f" and {len(classes) - 12} more" if len(classes) > 12 else ""
    named = ", ".join(_plain(name) for name in classes[:12]) + more
    groups = len({entry.group for entry in content.entries})
    grouping = (
        f"{groups} groups, none of them in two splits."
        if groups < len(content.entries)
        else "Every clip is its own group. If people or scenes repeat, write a table with a column group."
    )
    file = Origin(spec.as_posix())
    lines = [
        f"# {_plain(content.name)}: {len(content.entries)} clips of {len(classes)} classes ({named}).",
        f"# {grouping}",
        f"# Check it: {_plain(file.command('check'))}",
        f"# Every value, with its default: {_plain(file.command('explain'))}",
        f"data: {_data(content.data)}",
        *_cross_validation(content),
        f"clip: {{frames: {frames}, stride: {stride}, size: {SIZE}}}",
        f"# Clips have about {content.frames} frames. On a GPU, use frames: 16 and size: 112.",
        f"train: {{batch: {batch}, lr: 2e-3, warmup_epochs: {min(2, epochs - 1)}}}",
        "",
        f"# {_time(train * epochs * frames / FRAMES)}",
        "# Or a teacher pretrained on Kinetics, which is downloaded, and needs clip.size 112:",
        "# teacher: {arch: r2plus1d_18, weights: KINETICS400_V1, epochs: 10, train: {lr: 1e-4}}",
        f"teacher: {{arch: resnet3d, width: 16, blocks: [1, 1, 1], epochs: {epochs}}}",
        "cascade: []                     # or auto, or fractions of the teacher's parameters such as [0.3]",
        f"student: {{arch: resnet3d, width: 8, blocks: [1, 1, 1], epochs: {epochs}}}",
        *_method(content),
        "control: ce                     # the same student without a teacher, for comparison",
    ]
    return "\n".join(lines) + "\n"


def _data(data: Videos) -> str:
    """Return the section `data` on one line: the fields that are set."""
    fields = {"kind": data.kind, "path": data.path} | data.model_dump(mode="json", exclude_defaults=True)
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in fields.items()) + "}"


def _cross_validation(content: _Content) -> list[str]:
    """Return comment lines for a set with few validation clips."""
    count, folds = content.count("val"), content.data.folds
    if count >= FEW:
        return []
    few = f"# Only {count} clips are for validation, so accuracies are rough."
    if not content.drawn:
        return [few]
    return [
        f"{few} Cross-validation takes each of the {folds} folds in turn, in",
        f"# {folds} times the time. More data.folds leave more clips for training. Add this line for it:",
        f"# grid: {{folds: {folds}}}",
    ]


def _time(passes: float) -> str:
    """Return how long the spec takes, derived from the measured time of a pass."""
    minutes = math.ceil(passes * PASS_SECONDS / 60)
    return f"Training takes about {minutes} min on two free CPU cores (AMD EPYC)."


def _method(content: _Content) -> list[str]:
    """Return the lines that choose the method."""
    if not content.weak:
        return [
            "recipe: kd                      # the method: `stagedkd recipes` lists them",
            "# labels: {clean: 0.2}          # keeps a fifth of the labels: what does a teacher gain then?",
        ]
    return [
        "recipe: kd                      # clips without a label learn from the teacher alone",
        "# To refine labels that are missing or may be wrong, take this in place of kd. It costs two more trainings",
        "# of the teacher's network and was not measured; refined labels with plain kd were not shown to give a",
        "# better student: stagedkd docs noisy-labels",
        "# recipe: staged",
        "# refine: {rounds: 1, folds: 2}  # the recipe has 3 rounds of 4 folds",
    ]


def _scalar(value: object) -> str:
    """Return a YAML value on one line; words are quoted if needed."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        plain = bool(re.fullmatch(r"[\w./ -]+", value)) and parse_yaml(f"{{v: {value}}}", "").map["v"].value == value
    except SpecError:
        plain = False
    return value if plain else printable(json.dumps(value, ensure_ascii=False))


def _plain(text: str) -> str:
    """Return a name for a comment, on one line."""
    return " ".join(printable(text).split()) or "?"
