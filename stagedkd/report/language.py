"""Lines that `explain` and `diff` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from stagedkd.plan.compare import StageChange
from stagedkd.spec.describe import written
from stagedkd.spec.explain import Difference, Explained, documented


def explain_lines(rows: Sequence[Explained]) -> Iterator[str]:
    """Yield one line per value: path, value, source and what it overrides. A single value has its documentation."""
    width, values = _width([row.name for row in rows], 48), _width([_short(row.value) for row in rows], 36)
    sources = _width([row.source for row in rows], 44)
    for row in rows:
        over = "; ".join(f"overrides {_short(value)} at {place}" for value, place in row.over)
        line = f"{row.name:<{width}}  {_short(row.value):<{values}}  {row.source:<{sources}}"
        yield (line + ("  " + over if over else "")).rstrip()
    if len(rows) == 1 and documented(rows[0]):
        yield documented(rows[0])


def diff_lines(values: Sequence[Difference], stages: Sequence[StageChange]) -> Iterator[str]:
    """Yield the values that differ, with their sources; then every stage, and why it changed."""
    if not values:
        yield "no value differs"
    width = _width([row.name for row in values], 48)
    for row in values:
        yield f"{row.name:<{width}}  {_side(row.first)} -> {_side(row.second)}"
    count = Counter(stage.state for stage in stages)
    words = {"same": "the same", "changed": "changed", "gone": "only in the first", "new": "only in the second"}
    yield ""
    yield "stages: " + ", ".join(f"{count[state]} {word}" for state, word in words.items() if count[state])
    names = _width([stage.name for stage in stages], 40)
    for stage in stages:
        yield f"  {stage.name:<{names}}  {words[stage.state]}" + (f": {stage.why}" if stage.why else "")


def diff_json(values: Sequence[Difference], stages: Sequence[StageChange]) -> dict[str, Any]:
    """Return the same as plain values."""
    rows = [
        {"path": v.name, "first": v.first and v.first.as_json(), "second": v.second and v.second.as_json()}
        for v in values
    ]
    return {"values": rows, "stages": [{"stage": s.name, "state": s.state, "why": s.why} for s in stages]}


def _side(row: Explained | None) -> str:
    return "(absent)" if row is None else f"{_short(row.value)} ({row.source})"


def _short(value: Any) -> str:
    text = written(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _width(words: Sequence[str], most: int) -> int:
    return min(most, max((len(word) for word in words), default=0))
