"""What `stagedkd store` and `stagedkd reproduce` print."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Table

from stagedkd.plan.compare import changed_fields, fields_of, in_short
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import Key
from stagedkd.store.maintenance import Entry
from stagedkd.store.manifest import Manifest
from stagedkd.store.rebuilt import Rebuilt
from stagedkd.store.why import made_of


def size_of(count: int) -> str:
    """Bytes for people: 1.5 MB, in powers of 1000."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def age_of(seconds: float) -> str:
    """Seconds for people: 3 min, 5 h, 12 d."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def store_table(entries: Iterable[Entry], used: Mapping[Key, list[str]]) -> Table:
    """Entries of the store, and which specs use each, by key."""
    table = Table("kind", "key", box=None, header_style="bold", pad_edge=False)
    table.add_column("size", justify="right")
    table.add_column("age", justify="right")
    table.add_column("")
    for entry in entries:
        note = ", ".join(used.get(entry.key, []))
        if entry.part:
            note = {"attempt": "unfinished", "trash": "left by a clean-up"}[entry.part]
        elif not entry.key:
            note = "broken: stagedkd store verify"
        table.add_row(entry.kind, entry.short, size_of(entry.size), age_of(entry.age), note)
    return table


def sizes_table(sizes: Mapping[str, int], counts: Mapping[str, int]) -> Table:
    """Sizes by kind, the largest first."""
    table = Table("what", box=None, header_style="bold", pad_edge=False)
    table.add_column("count", justify="right")
    table.add_column("size", justify="right")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        table.add_row(name, str(counts[name]), size_of(size))
    return table


def artifact_lines(manifest: Manifest, run: Mapping[str, Any] | None, specs: list[str]) -> Iterator[str]:
    """What made an artifact: when and where, its work, and all that stands above it."""
    yield f"{manifest.kind} {manifest.key}"
    yield f"used by: {', '.join(specs) or 'none of the specs'}"
    if run is None:
        yield "no run.json: when and where it was made is not known"
    else:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(run.get("started", 0))))
        facts = [f"{name} {run[name]}" for name in ("device", "threads", "torch", "stagedkd", "code") if name in run]
        yield f"made: {when} in {age_of(float(run.get('seconds', 0)))}" + (f", {', '.join(facts)}" if facts else "")
    yield "work:"
    yield from (f"  {name}: {value}" for name, value in fields_of(manifest.work).items())
    yield "made of:"
    for depth, name, key in made_of(manifest):
        if depth:
            yield f"{'  ' * depth}{name}: {manifest.closure[key].work.kind} {key.short}"


def against_lines(manifest: Manifest, plans: Mapping[str, Plans]) -> Iterator[str]:
    """An artifact against the stages of its kind in specs: the same, or what differs."""
    for name, made in plans.items():
        seen: set[str] = set()
        for plan in made.cells.values():
            for stage in plan.stages:
                if stage.work.kind != manifest.kind or stage.identity in seen:
                    continue
                seen.add(stage.identity)
                if stage.key == manifest.key:
                    yield f"{stage.name} of {name}: this one"
                    continue
                above = {given: need.key for given, need in plan.inputs(stage).items()}
                inputs = sorted(given for given, key in above.items() if manifest.needs.get(given) != key)
                fields = changed_fields(manifest.work, stage.work)
                yield f"{stage.name} of {name}: another, {in_short(fields, inputs)}"


def rebuilt_lines(found: Rebuilt) -> Iterator[str]:
    """What was rebuilt, what differs, and what of the environment does."""
    if not found.differs:
        yield f"rebuilt {len(found.stages)} stages; equal bit for bit: {', '.join(found.compared)}"
    else:
        names = [name for name in found.compared if found.compared[name]]
        yield f"rebuilt {len(found.stages)} stages, and {len(names)} of {len(found.compared)} compared differ:"
        yield from (f"  {name}: {fault}" for name in names for fault in found.compared[name])
    if found.bare:
        yield f"not compared, since no original is here: {', '.join(found.bare)}"
    if found.environment is None:
        yield "no run.json of the original: its code, packages, hardware and threads are not known"
    elif found.environment:
        yield "the environment differs: " + "; ".join(found.environment)
    elif found.differs:
        yield "code, packages, hardware, device and threads are those of the original's run.json"
