"""`Prepare` and `Weaken`: the clips of a data set, and the labels that training sees."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from stagedkd.data.index import Entry, classes_of, list_clips, require_classes, split_entries
from stagedkd.data.labels import label_counts, weaken
from stagedkd.errors import DataError
from stagedkd.execute.context import Context, Done
from stagedkd.execute.tables import read_table, write_table
from stagedkd.plan.lock import data_id
from stagedkd.plan.work import Prepare, Weaken
from stagedkd.spec.schema import Clip, Csv, Folder, Grouped, Shapes

if TYPE_CHECKING:
    from stagedkd.data.cache import ClipCache


def prepare(context: Context, work: Prepare) -> Done:
    """Index the data set: clips.parquet, truth.parquet (read by `Weaken`, a teacher of `labels: all` and `Evaluate`
    alone), data.json.

    Raises:
        DataError: too many bad files, a class without training clip, nothing to validate on.
    """
    bad: list[dict[str, str]] = []
    if isinstance(work.data, Shapes):
        entries, classes = _simulated(work.data)
    else:
        assert isinstance(work.data, Grouped) and work.clip is not None, "check_rules refuses other layouts"
        _, listed = list_clips(work.data, context.runtime.folder("data_dir"))
        sound, bad = _sound(context, work.data, work.clip, listed)
        classes = classes_of(listed)
        entries = split_entries(sound, work.data)
        bad += [{"path": e.path, "reason": "no trusted label, and not in training"} for e in _left_out(sound, entries)]
        require_classes(entries, classes)
    if not any(e.split == "val" for e in entries):
        raise DataError("no clip is left for validation", hint="add groups, or change data.folds or data.seed")
    ids = {name: i for i, name in enumerate(classes)}
    write_table(context.workspace.files / "clips.parquet", {
        "clip": list(range(len(entries))), "path": [e.path for e in entries], "group": [e.group for e in entries],
        "split": [e.split for e in entries], "trusted": [e.trusted for e in entries],
    })  # fmt: skip
    truth = [ids.get(e.label, -1) for e in entries]
    write_table(context.workspace.files / "truth.parquet", {"clip": list(range(len(entries))), "label": truth})
    splits = Counter(e.split for e in entries)
    counts = {name: splits.get(name, 0) for name in ("train", "val", "test")}
    text = json.dumps({"classes": list(classes), "clips": counts, "bad_files": bad}, indent=1, ensure_ascii=False)
    (context.workspace.files / "data.json").write_text(text + "\n", "utf-8")
    return Done(metrics={"classes": len(classes), "clips": counts, "bad_files": len(bad)})


def _simulated(data: Shapes) -> tuple[list[Entry], tuple[str, ...]]:
    from stagedkd.data.simulate.shapes import CLASSES, label_of

    classes = CLASSES[: data.classes]
    splits = ["train"] * data.train + ["val"] * data.val + ["test"] * data.test
    labels = label_of(np.arange(len(splits)), data).tolist()
    return [Entry(f"shapes:{i}", classes[labels[i]], f"{i}", split) for i, split in enumerate(splits)], classes


def open_clips(context: Context, data: Grouped, clip: Clip) -> ClipCache:
    """The clip cache of a data set on the disk, built if it is not there."""
    from stagedkd.data.cache import open_cache

    assert isinstance(data, Folder | Csv)
    locked = context.plan.lock.data[str(data_id(data))]
    place = context.runtime.folder("data_dir") / data.path

    def progress(done: int, of: int) -> None:
        context.stop.check()
        context.listener.count("clips decoded", done, of)

    return open_cache(
        context.runtime.folder("cache"), place if isinstance(data, Folder) else place.parent, locked.files,
        clip.shorter_side, context.runtime.workers or 2, progress,
    )  # fmt: skip


def _sound(
    context: Context, data: Grouped, clip: Clip, listed: list[Entry]
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Entries with enough decodable frames, and the others with their reasons.

    A sound short clip loops (or pads); a damaged one must have the frames of a whole clip before its first error.
    """
    cache = open_clips(context, data, clip)
    whole = (clip.frames - 1) * clip.stride + 1
    sound: list[Entry] = []
    bad: list[dict[str, str]] = []
    for entry in listed:
        found = cache.clips[entry.path]
        short = found.frames < (whole if found.fault or clip.short == "refuse" else 1)
        if found.fault or short:
            reason = found.fault or f"short: {found.frames} of {whole} frames"
            bad.append({"path": entry.path, "reason": reason + ("" if short else "; used up to there")})
        if not short:
            sound.append(entry)
    skipped = len(listed) - len(sound)
    for row in bad:
        context.listener.note(f"bad file {row['path']}: {row['reason']}")
    if (skipped and data.bad_files == "strict") or (skipped > 3 and skipped > 0.01 * len(listed)):
        rows = "\n    ".join(f"{row['path']}: {row['reason']}" for row in bad[:20])
        limit = "data.bad_files is strict" if data.bad_files == "strict" else "the limit is 3 files or 1%"
        raise DataError(
            f"{skipped} of {len(listed)} files are bad ({limit}):\n    {rows}", hint="repair or remove them"
        )
    return sound, bad


def _left_out(sound: list[Entry], entries: list[Entry]) -> list[Entry]:
    kept = {e.path for e in entries}
    return [e for e in sound if e.path not in kept]


def weaken_labels(context: Context, work: Weaken) -> Done:
    """Write labels.parquet: for each training clip the label it is given (-1: none) and where that comes from."""
    data = context.inputs["data"]
    clips, truth = read_table(data.file("clips.parquet")), read_table(data.file("truth.parquet"))["label"]
    classes = len(json.loads(data.file("data.json").read_text("utf-8"))["classes"])
    train = [i for i, split in enumerate(clips["split"]) if split == "train"]
    true = np.array([truth[i] for i in train], np.int64)
    trusted = np.array([clips["trusted"][i] for i in train], np.bool_)
    given, origin = weaken(true, trusted, work.labels, classes)
    write_table(context.workspace.files / "labels.parquet", {"clip": train, "label": given.tolist(), "origin": origin})
    if not (given >= 0).any() and work.labels.clean + work.labels.noisy > 0:
        raise DataError("no training clip has a label", hint="raise labels.clean or labels.noisy")
    return Done(metrics={"labels": label_counts(origin)})
