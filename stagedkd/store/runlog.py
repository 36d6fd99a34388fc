"""How the run of a stage went: `run.json` and `events.jsonl` beside the files of an artifact.

Nothing depends on them, and a clone that gets artifacts by DVC lacks them. So damage is no error: it is named, and
costs the facts of that file, or the events of the damaged lines. `run.json` is a record and states the digest of the
events. Each line of events ends in a checksum of its own, since a running stage has no digest of them yet.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stagedkd.files import DamagedError, FileBytes, read_record

RUN_FACTS, EVENTS = "run.json", "events.jsonl"
CRC = ', "crc": "'  # begins the end of a line; 8 hex digits and "} follow


@dataclass(frozen=True)
class RunLog:
    """The facts of run.json (None if there are none), the events, and what is damaged: a line for each file."""

    run: dict[str, Any] | None
    events: tuple[Mapping[str, Any], ...]
    damage: tuple[str, ...]


def event_line(fields: Mapping[str, Any]) -> str:
    """Return an event as a line of the file, without its end. The last field is the CRC-32 of what is before it."""
    text = json.dumps(fields, allow_nan=False)[:-1]
    return f'{text}{CRC}{zlib.crc32(text.encode()):08x}"}}'


def read_event(line: str, *, checked: bool) -> dict[str, Any] | None:
    """Read an event from its line; None if the line is damaged. `checked`: it must have a checksum."""
    text, mark, end = line.rpartition(CRC)
    if checked and (not mark or end != f'{zlib.crc32(text.encode("utf-8", "replace")):08x}"}}'):
        return None
    try:
        event: Any = json.loads(text + "}" if mark else line)
    except (ValueError, RecursionError):
        return None
    fields = cast("dict[str, Any]", event) if isinstance(event, dict) else {}
    return fields if isinstance(fields.get("event"), str) else None


def read_run_log(folder: Path) -> RunLog:
    """Read run.json and events.jsonl of an artifact's folder. Both may be missing, or from an earlier version."""
    damage: list[str] = []
    run, events = None, ()
    path = folder / RUN_FACTS
    try:
        run, _ = read_record(path.read_bytes())
    except FileNotFoundError:
        pass
    except (DamagedError, OSError) as error:
        damage.append(f"{path} {_what(error)}")
    path = folder / EVENTS
    try:
        file = FileBytes.read(path)
    except FileNotFoundError:
        if run and EVENTS in run:
            damage.append(f"{path} is missing")
    except OSError as error:
        damage.append(f"{path} {_what(error)}")
    else:
        events, lost = read_events(file.content)
        if lost:
            damage.append(f"{path} is damaged: {len(lost)} lines are left out, from line {lost[0]}")
        elif run and run.get(EVENTS, file.digest) != file.digest:
            damage.append(f"{path} was changed after it was written: run.json has another digest of it")
    return RunLog(run, events, tuple(damage))


def read_events(content: bytes) -> tuple[tuple[Mapping[str, Any], ...], list[int]]:
    """Read the content of an event file. Returns the events of its sound lines, and the numbers of the others. If any
    line has a checksum, all must: earlier versions wrote none."""
    lines = content.decode("utf-8", "replace").removesuffix("\n").split("\n") if content else []
    checked = any(CRC in line for line in lines)
    read = [read_event(line, checked=checked) for line in lines]
    return tuple(event for event in read if event), [i for i, event in enumerate(read, 1) if not event]


def _what(error: Exception) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
