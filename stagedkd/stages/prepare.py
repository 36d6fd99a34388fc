"""Index a data set: its clips, splits, classes and bad files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stagedkd.data.index import A_LIST, UNUSED, Entry, Listing, copies_across, require_classes, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.data.layouts.walk import shown
from stagedkd.errors import DataError
from stagedkd.plan.lock import data_id
from stagedkd.plan.work import PrepareWork, Reading
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Simulated, Videos
from stagedkd.stages.context import Context, Result
from stagedkd.stages.tables import write_table

if TYPE_CHECKING:
    from stagedkd.data.decode import Footage


@dataclass(frozen=True)
class Found:
    """What a data set holds: its clips with their splits, and what is to be said of its files."""

    entries: Sequence[Entry]
    classes: Sequence[str]
    footages: Mapping[str, Footage] = field(default_factory=dict[str, "Footage"])
    bad_files: Sequence[dict[str, str]] = ()
    """The files that are left out, or used in part: `path` and `reason`."""
    file_notes: Sequence[dict[str, str]] = ()
    """What is to be known of files that are used: `path` and `note`."""
    leaks: Sequence[Sequence[str]] = ()
    data_notes: Sequence[str] = ()


def prepare(context: Context, work: PrepareWork) -> Result:
    """Index the data set: write clips.parquet, data.json, and truth.parquet with the hidden true labels, which only
    `WeakenWork`, a teacher with `labels: all` and `EvaluateWork` read.

    Raises:
        DataError: there are too many bad files, a class has no training clip, or no clip is left for validation.
    """
    found = _simulated(work.data) if isinstance(work.data, Simulated) else _videos(context, work)
    entries, classes = found.entries, found.classes
    if not any(e.split == "val" for e in entries):
        raise DataError("no clip is left for validation", hint="add groups, or change data.folds or data.seed")
    ids = {name: i for i, name in enumerate(classes)}
    write_table(
        context.workspace.files / "clips.parquet",
        {
            "clip": list(range(len(entries))),
            "path": [e.path for e in entries],
            "group": [e.group for e in entries],
            "split": [e.split for e in entries],
            "trusted": [e.trusted for e in entries],
            **_footage_columns(entries, found.footages),
        },
    )
    truth = [ids.get(e.label, -1) for e in entries]
    write_table(context.workspace.files / "truth.parquet", {"clip": list(range(len(entries))), "label": truth})
    splits = Counter(e.split for e in entries)
    counts = {name: splits.get(name, 0) for name in ("train", "val", "test")}
    summary = {"classes": list(classes), "clips": counts, "bad_files": found.bad_files, "leaks": found.leaks}
    summary |= {"file_notes": found.file_notes} if found.file_notes else {}
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (context.workspace.files / "data.json").write_text(text + "\n", "utf-8")
    metrics = {"classes": len(classes), "clips": counts, "bad_files": len(found.bad_files)}
    return Result(metrics, run={"data_notes": found.data_notes})


def _videos(context: Context, work: PrepareWork) -> Found:
    """Find the clips of real videos, and decode each once, since only decoding tells what is bad."""
    assert isinstance(work.data, Videos) and work.reading is not None
    listing = list_clips(work.data, context.runtime.folder("data_dir"))
    data_notes = _notes_of(listing)
    _say(context, data_notes)
    listed = [e for e in listing.entries if e.split != UNUSED]
    usable, footages, bad_files = _usable(context, work.data, work.reading, listed)
    entries = split_entries(usable, work.data)
    reason = "no trusted label, and not in training"
    bad_files += [{"path": e.path, "reason": reason} for e in _left_out(usable, entries)]
    require_classes(entries, listing.classes)
    unvalidated = _unvalidated(entries, listing.classes)
    file_notes = [{"path": e.path, "note": footages[e.path].note} for e in usable if footages[e.path].note]
    _say(context, [*unvalidated, *(f"{row['path']} is used: {row['note']}" for row in file_notes[:20])])
    leaks = copies_across(entries, context.plan.lock.data[str(data_id(work.data))].files)
    if leaks:
        context.listener.note(f"{len(leaks)} videos have a copy in another split, such as {' = '.join(leaks[0])}")
    return Found(entries, listing.classes, footages, bad_files, file_notes, leaks, [*data_notes, *unvalidated])


def _say(context: Context, notes: Sequence[str]) -> None:
    for note in notes:
        context.listener.note(note)


def _notes_of(listing: Listing) -> list[str]:
    """What is to be known of a listing. It goes to run.json: files that are no clips are not in the lock, so they may
    differ from run to run."""
    left_out = {reason: paths for reason, paths in listing.left_out.items() if reason != A_LIST}
    rows = [f"left out: {len(paths):,} ({why}), such as {shown(paths[0])}" for why, paths in left_out.items()]
    return [*listing.notes, *rows]


def _unvalidated(entries: Sequence[Entry], classes: Sequence[str]) -> list[str]:
    """A note on the classes that no validation clip shows."""
    validated = {e.label for e in entries if e.split == "val"}
    absent = [name for name in classes if name not in validated]
    if not absent or not validated:
        return []
    some = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return [f"no validation clip of class {some}: results tell nothing of it"]


def _footage_columns(entries: Sequence[Entry], footages: Mapping[str, Footage]) -> dict[str, list[object]]:
    """The columns that views are drawn from: number of decodable frames, height and width of the upright picture, and
    the time of each frame in seconds."""
    rows = [footages[e.path] for e in entries] if footages else []
    return {
        "frames": [f.frames for f in rows] or [0] * len(entries),
        "height": [f.height for f in rows] or [0] * len(entries),
        "width": [f.width for f in rows] or [0] * len(entries),
        "times": [np.array(f.times) for f in rows] or [[0.0]] * len(entries),
    }


def _simulated(data: Simulated) -> Found:
    names = class_names(data)
    splits = ["train"] * data.train + ["val"] * data.val + ["test"] * data.test
    # the simulator gives clip i the class i modulo the number of classes (data/simulate/base.py)
    entries = [Entry(f"{data.kind}:{i}", names[i % len(names)], f"{i}", split) for i, split in enumerate(splits)]
    return Found(entries, names)


def _usable(
    context: Context, data: Videos, reading: Reading, listed: Sequence[Entry]
) -> tuple[list[Entry], dict[str, Footage], list[dict[str, str]]]:
    """Find the entries with enough decodable frames. An intact short file is used, since its clip loops (or pads); a
    damaged file must have the frames of a whole clip before its first error.

    Returns:
        the usable entries, the footage of all files by path, and the bad files with their reasons.
    Raises:
        DataError: there are too many bad files.
    """
    from stagedkd.stages.clips import footage_of

    footages = footage_of(context, data, context.plan.clip)
    usable: list[Entry] = []
    bad_files: list[dict[str, str]] = []
    for entry in listed:
        problem, short = problem_of(footages[entry.path], reading)
        if problem:
            bad_files.append({"path": entry.path, "reason": problem + ("" if short else "; used up to there")})
        if not short:
            usable.append(entry)
    skipped = len(listed) - len(usable)
    for row in bad_files[:20]:
        context.listener.note(f"bad file {row['path']}: {row['reason']}")
    if len(bad_files) > 20:
        context.listener.note(f"... and {len(bad_files) - 20} more bad files; the report lists all of them")
    if (skipped and data.bad_files == "strict") or (skipped > 3 and skipped > data.bad_share * len(listed)):
        rows = "\n    ".join(f"{row['path']}: {row['reason']}" for row in bad_files[:20])
        allowed = f"the limit is 3 files or {data.bad_share:.0%}"
        limit = "data.bad_files is strict" if data.bad_files == "strict" else allowed
        hint = "repair or remove these files, or raise data.bad_share"
        raise DataError(f"{skipped} of {len(listed)} files are bad ({limit}):\n    {rows}", hint=hint)
    return usable, footages, bad_files


def problem_of(footage: Footage, reading: Reading) -> tuple[str, bool]:
    """Find the problem of a file ("" if it has none), and whether it has too few frames to be used."""
    steps = float(footage.frames)
    if reading.rate is not None and footage.frames and not footage.times:
        return "pictures have no clock, which clip.sampling: time needs: use clip.sampling: count", True
    if reading.rate is not None and footage.frames > 1:
        steps = (footage.times[-1] - footage.times[0]) * footage.frames / (footage.frames - 1) * reading.rate
    short = steps < (reading.span if footage.fault or reading.refuse else min(1, reading.span)) or not footage.frames
    return footage.fault or (f"short: {footage.frames} frames, too few for a clip" if short else ""), short


def _left_out(usable: list[Entry], entries: list[Entry]) -> list[Entry]:
    """The usable entries that got no split."""
    split_paths = {e.path for e in entries}
    return [e for e in usable if e.path not in split_paths]
