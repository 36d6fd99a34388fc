"""Tables and lines that `stagedkd store` and `stagedkd reproduce` print."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from stagedkd.plan.compare import changed_fields, fields_of, in_short
from stagedkd.plan.graph import Plans
from stagedkd.plan.key import Key
from stagedkd.store.maintenance import Entry, age_text
from stagedkd.store.manifest import Manifest
from stagedkd.store.rebuilt import Rebuilt
from stagedkd.store.why import made_of, sources_of


def store_table(entries: Iterable[Entry], used: Mapping[Key, list[str]]) -> Table:
    """Return a table of entries of the store. `used` maps a key to the names of the specs that use it."""
    table = Table("kind", "key", box=None, header_style="bold", pad_edge=False)
    table.add_column("size", justify="right")
    table.add_column("age", justify="right")
    table.add_column("used by")
    for entry in entries:
        note = ", ".join(used.get(entry.key, []))
        if entry.part:
            note = {"attempt": "unfinished", "trash": "left by an interrupted deletion"}[entry.part]
        elif not entry.key:
            note = "broken; run: stagedkd store verify"
        table.add_row(entry.kind, entry.short, decimal(entry.size), age_text(entry.age), note)
    return table


def sizes_table(sizes: Mapping[str, int], counts: Mapping[str, int]) -> Table:
    """Return a table of sizes in bytes and counts by kind, the largest first."""
    table = Table("what", box=None, header_style="bold", pad_edge=False)
    table.add_column("count", justify="right")
    table.add_column("size", justify="right")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        table.add_row(name, str(counts[name]), decimal(size))
    return table


def artifact_lines(manifest: Manifest, run: Mapping[str, Any] | None, specs: list[str]) -> Iterator[str]:
    """Yield what made an artifact: when and where, its work, and all artifacts that it was made from."""
    yield f"{manifest.kind} {manifest.key}"
    yield f"used by: {', '.join(specs) or 'no spec'}"
    if run is None:
        yield "run.json is missing: when and where the artifact was made is unknown"
    else:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(run.get("started", 0))))
        facts = [f"{name} {run[name]}" for name in ("device", "threads", "torch", "stagedkd", "code") if name in run]
        yield f"made: {when} in {age_text(float(run.get('seconds', 0)))}" + (f", {', '.join(facts)}" if facts else "")
    yield "work:"
    yield from (f"  {name}: {value}" for name, value in fields_of(manifest.work).items())
    yield "made from:"
    for depth, name, key in made_of(manifest):
        if depth:
            digest = f", digest {manifest.inputs[key][:12]}" if key in manifest.inputs else ""
            yield f"{'  ' * depth}{name}: {manifest.closure[key].work.kind} {key.short}{digest}"
    yield from (f"  {what}: {digest[:12]}" for what, digest in sources_of(manifest).items())


def comparison_lines(manifest: Manifest, plans: Mapping[str, Plans]) -> Iterator[str]:
    """Yield how the stages of an artifact's kind in specs compare with it: the same, or what differs."""
    for name, spec_plans in plans.items():
        seen: set[str] = set()
        for plan in spec_plans.cells.values():
            for stage in plan.stages:
                if stage.work.kind != manifest.kind or stage.identity in seen:
                    continue
                seen.add(stage.identity)
                if stage.key == manifest.key:
                    yield f"{stage.name} of {name}: the same"
                    continue
                keys = {source: upstream.key for source, upstream in plan.inputs(stage).items()}
                inputs = sorted(source for source, key in keys.items() if manifest.needs.get(source) != key)
                fields = changed_fields(manifest.work, stage.work)
                yield f"{stage.name} of {name}: different, {in_short(fields, inputs)}"


def rebuilt_lines(rebuilt: Rebuilt) -> Iterator[str]:
    """Yield what was rebuilt, which files differ, and how the environments differ."""
    if not rebuilt.differs:
        yield f"rebuilt {len(rebuilt.stages)} stages; equal bit for bit: {', '.join(rebuilt.compared)}"
    else:
        names = [name for name in rebuilt.compared if rebuilt.compared[name]]
        yield f"rebuilt {len(rebuilt.stages)} stages, and {len(names)} of {len(rebuilt.compared)} compared differ:"
        yield from (f"  {name}: {problem}" for name in names for problem in rebuilt.compared[name])
    if rebuilt.bare:
        yield f"not compared, because their originals are missing: {', '.join(rebuilt.bare)}"
    if rebuilt.environment is None:
        yield "the original's run.json is missing: its code, packages, hardware and threads are unknown"
    elif rebuilt.environment:
        yield "the environment differs: " + "; ".join(rebuilt.environment)
    elif rebuilt.differs:
        yield "code, packages, hardware, device and threads equal those in the original's run.json"
