"""Inspect data without training: `stagedkd data index | verify | preview`."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stagedkd.data.address import Address, without_part
from stagedkd.data.fingerprint import HashMemo
from stagedkd.data.index import SPLITS, UNUSED, Entry, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.errors import Advice, UsageError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.lock import read_lock
from stagedkd.plan.runtime import Runtime
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Simulated, Spec, sides
from stagedkd.stages.context import Listener, Session, Stop

LONGEST_LABEL = 40  # characters of a class name in the name of a file: each may take four bytes


@dataclass(frozen=True)
class Survey:
    """A data set as it is on the disk.

    `counts`: class -> split -> number of clips; `groups`: split -> number of groups. `duplicates`: sets of paths with
    the same content; the first `leaks` of them are in several splits. `missing` files are listed and do not exist;
    `unlisted` ones exist and are not listed. `unlabelled` and `unused` clips are counted apart. `clips`: the number of
    clips that are listed; `left_out`: reason -> the number of files that are no clips; `notes`: sentences.
    """

    counts: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    duplicates: tuple[tuple[str, ...], ...]
    leaks: int
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]
    unlabelled: int
    unused: int
    clips: int
    left_out: Mapping[str, int]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The survey as plain JSON values."""
        return {**self.__dict__, "duplicates": [list(d) for d in self.duplicates]}


def survey(spec: Spec, runtime: Runtime, listener: Listener) -> Survey:
    """Count the clips per class and split, and find missing files and files of the same content.

    Raises:
        UsageError, DataError: the data do not exist, or their lists are wrong.
    """
    data = spec.data
    if isinstance(data, Simulated):
        names, sizes = class_names(data), {"train": data.train, "val": data.val, "test": data.test}
        starts = {"train": 0, "val": data.train, "test": data.train + data.val}
        counts = {
            name: {s: sum((starts[s] + k) % len(names) == i for k in range(n)) for s, n in sizes.items()}
            for i, name in enumerate(names)
        }
        return Survey(counts, sizes, (), 0, (), (), 0, 0, sum(sizes.values()), {}, ())
    listing = list_clips(data, runtime.folder("data_dir"))
    memo = HashMemo(runtime.folder("cache") / "hashes.json")
    contents: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    missing: list[str] = []
    used = [e for e in listing.entries if e.split != UNUSED]
    entries = {e.path: e for e in split_entries(used, data)}
    for done, entry in enumerate(used, 1):
        sha256 = memo.clip(Address.read(listing.root, entry.path))[1]
        if sha256:
            contents[sha256, without_part(entry.path)[1]].append(entries.get(entry.path, entry))
        else:
            missing.append(entry.path)
        listener.count("files read", done, len(used))
    memo.save()
    copies = [rows for rows in contents.values() if len(rows) > 1]
    leaks = [rows for rows in copies if len({e.split for e in rows}) > 1]
    ordered = sorted(copies, key=lambda rows: (rows not in leaks, rows[0].path))
    tally = Counter((e.label, e.split) for e in entries.values())
    return Survey(
        counts={name: {split: tally[name, split] for split in SPLITS} for name in listing.classes},
        groups={split: len({e.group for e in entries.values() if e.split == split}) for split in SPLITS},
        duplicates=tuple(tuple(e.path for e in rows) for rows in ordered),
        leaks=len(leaks),
        missing=tuple(missing),
        unlisted=listing.unlisted,
        unlabelled=sum(not e.label for e in used),
        unused=len(listing.entries) - len(used),
        clips=len(listing.entries),
        left_out={reason: len(paths) for reason, paths in listing.left_out.items()},
        notes=listing.notes,
    )


def verify(spec: Spec, runtime: Runtime, listener: Listener) -> tuple[int, list[str]]:
    """Read the clip cache again and compare it with a fresh decode of every file.

    Returns:
        the number of clips that were compared, and a line for each that differs.
    Raises:
        UsageError: there is no cache to verify.
    """
    data = spec.data
    if isinstance(data, Simulated):
        raise UsageError("simulated clips have no cache", hint="they are rendered from (seed, index)")
    if spec.clip.cache == "none":
        raise UsageError("clip.cache is none: there is no cache to verify", hint="set clip.cache to raw or jpeg")
    plan = compile_plan(spec, read_lock(runtime.lock_path))
    if plan.stages[0].key is None:
        raise UsageError("the data are not locked yet", hint=Advice("run", "lock"))
    from stagedkd.data.cache import ClipCache
    from stagedkd.data.cache_build import differences
    from stagedkd.stages.clips import cache_spec, workers

    expected = cache_spec(data, spec.clip, plan.lock, runtime)
    folder = runtime.folder("cache") / expected.name
    if not (folder / f"shard-{len(expected.shards) - 1:05d}.json").is_file():
        raise UsageError(f"the clip cache in {folder} is missing or incomplete", hint=Advice("run", "run"))
    cache = ClipCache(folder, expected)
    progress = partial(listener.count, "clips compared")
    return len(cache.paths), list(differences(cache, expected, workers(runtime), progress))


def preview(spec: Spec, runtime: Runtime, listener: Listener, folder: Path, clips: int) -> list[Path]:
    """Write contact.png and an animated WebP for each class, from the training clips and their weak labels.

    Returns:
        the paths of the files, the contact sheet first.
    """
    from stagedkd.data.preview import animation, contact_sheet
    from stagedkd.experiment.run import locked_plan, run_stage
    from stagedkd.experiment.samples import samples

    plan = locked_plan(spec, runtime, listener)
    artifacts = {name: run_stage(plan, plan.stage(name), runtime, listener)[0] for name in ("data", "labels")}
    session = Session(plan=plan, runtime=runtime, listener=listener, stop=Stop())
    rows = samples(session, artifacts["data"], artifacts["labels"], clips)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "contact.png"]
    first = [row[0] for row in rows.values()]
    height, width = sides(spec.clip.size)
    size = f"{spec.clip.frames} frames of {height} x {width}"
    contact_sheet(first, written[0], f"{spec.name}: {len(rows)} classes, {size}, training clips")
    names = _file_names(rows)
    for label, row in rows.items():
        written.append(folder / names[label])
        animation(row, written[-1], fps=max(3.0, spec.clip.frames / 2))
    return written


def _file_names(labels: Iterable[str]) -> dict[str, str]:
    """Return the name of each class's animation. A class whose name cannot be that of a file, or differs from another
    only in case, has a digest in it, so that no two have one file."""
    names: dict[str, str] = {}
    for label in labels:
        plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in label)[:LONGEST_LABEL]
        known = {name.casefold() for name in names.values()}
        digest = hashlib.sha256(label.encode()).hexdigest()[:8]
        is_plain = plain == label and f"{plain}.webp".casefold() not in known
        names[label] = f"{plain}.webp" if is_plain else f"{plain}-{digest}.webp"
    return names
