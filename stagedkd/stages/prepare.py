"""Index a data set: its clips, splits and classes, and which files are bad."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stagedkd.data.index import UNUSED, Entry, copies_across, require_classes, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.errors import DataError
from stagedkd.plan.lock import data_id
from stagedkd.plan.work import PrepareWork, Reading
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Simulated, Videos
from stagedkd.stages.context import Context, Result
from stagedkd.stages.tables import write_table

if TYPE_CHECKING:
    from stagedkd.data.decode import Footage


def prepare(context: Context, work: PrepareWork) -> Result:
    """Index the data set: clips.parquet, truth.parquet (read by `WeakenWork`, a teacher of `labels: all` and `Evaluate`
    alone), data.json.

    Raises:
        DataError: too many bad files, a class without training clip, nothing to validate on.
    """
    bad: list[dict[str, str]] = []
    held: dict[str, Footage] = {}
    leaks: list[list[str]] = []
    if isinstance(work.data, Simulated):
        entries, classes = _simulated(work.data)
    else:
        assert isinstance(work.data, Videos) and work.reading is not None
        listing = list_clips(work.data, context.runtime.folder("data_dir"))
        classes, listed = listing.classes, [e for e in listing.entries if e.split != UNUSED]
        sound, held, bad = _sound(context, work.data, work.reading, listed)
        entries = split_entries(sound, work.data)
        bad += [{"path": e.path, "reason": "no trusted label, and not in training"} for e in _left_out(sound, entries)]
        require_classes(entries, classes)
        leaks = copies_across(entries, context.plan.lock.data[str(data_id(work.data))].files)
        if leaks:
            context.listener.note(f"{len(leaks)} videos have a copy in another split, such as {' = '.join(leaks[0])}")
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
            **_measured(entries, held),
        },
    )
    truth = [ids.get(e.label, -1) for e in entries]
    write_table(context.workspace.files / "truth.parquet", {"clip": list(range(len(entries))), "label": truth})
    splits = Counter(e.split for e in entries)
    counts = {name: splits.get(name, 0) for name in ("train", "val", "test")}
    found = {"classes": list(classes), "clips": counts, "bad_files": bad, "leaks": leaks}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (context.workspace.files / "data.json").write_text(text + "\n", "utf-8")
    return Result(metrics={"classes": len(classes), "clips": counts, "bad_files": len(bad)})


def _measured(entries: Sequence[Entry], held: Mapping[str, Footage]) -> dict[str, list[object]]:
    """What views are drawn from: decodable frames, the upright picture, the time of each frame."""
    found = [held[e.path] for e in entries] if held else []
    return {
        "frames": [f.frames for f in found] or [0] * len(entries),
        "height": [f.height for f in found] or [0] * len(entries),
        "width": [f.width for f in found] or [0] * len(entries),
        "times": [list(f.times) for f in found] or [[0.0]] * len(entries),
    }


def _simulated(data: Simulated) -> tuple[list[Entry], tuple[str, ...]]:
    names = class_names(data)
    splits = ["train"] * data.train + ["val"] * data.val + ["test"] * data.test
    # the simulator gives clip i the class i modulo the classes (data/simulate/base.py)
    rows = [Entry(f"{data.kind}:{i}", names[i % len(names)], f"{i}", split) for i, split in enumerate(splits)]
    return rows, names


def _sound(
    context: Context, data: Videos, reading: Reading, listed: Sequence[Entry]
) -> tuple[list[Entry], dict[str, Footage], list[dict[str, str]]]:
    """Entries with enough decodable frames, what their files hold, and the others with their reasons.

    A sound short clip loops (or pads); a damaged one must have the frames of a whole clip before its first error.
    """
    from stagedkd.stages.clips import footage_of

    held = footage_of(context, data, context.plan.clip)
    sound: list[Entry] = []
    bad: list[dict[str, str]] = []
    for entry in listed:
        found = held[entry.path]
        reason, short = fault_of(found, reading)
        if reason:
            bad.append({"path": entry.path, "reason": reason + ("" if short else "; used up to there")})
        if not short:
            sound.append(entry)
    skipped = len(listed) - len(sound)
    for row in bad[:20]:
        context.listener.note(f"bad file {row['path']}: {row['reason']}")
    if len(bad) > 20:
        context.listener.note(f"... and {len(bad) - 20} more bad files: the report lists them all")
    if (skipped and data.bad_files == "strict") or (skipped > 3 and skipped > data.bad_share * len(listed)):
        rows = "\n    ".join(f"{row['path']}: {row['reason']}" for row in bad[:20])
        limit = (
            "data.bad_files is strict"
            if data.bad_files == "strict"
            else f"the limit is 3 files or {data.bad_share:.0%}"
        )
        hint = "repair or remove them, or raise data.bad_share"
        raise DataError(f"{skipped} of {len(listed)} files are bad ({limit}):\n    {rows}", hint=hint)
    return sound, held, bad


def fault_of(found: Footage, reading: Reading) -> tuple[str, bool]:
    """What is wrong with a file, "" if nothing is, and whether it has too few frames to be used."""
    steps = float(found.frames)
    if reading.rate is not None and found.frames > 1:
        steps = (found.times[-1] - found.times[0]) * found.frames / (found.frames - 1) * reading.rate
    short = steps < (reading.span if found.fault or reading.refuse else min(1, reading.span)) or not found.frames
    return found.fault or (f"short: {found.frames} frames, too few for a clip" if short else ""), short


def _left_out(sound: list[Entry], entries: list[Entry]) -> list[Entry]:
    kept = {e.path for e in entries}
    return [e for e in sound if e.path not in kept]
