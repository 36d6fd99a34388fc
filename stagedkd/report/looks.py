"""`stagedkd.looks`: the ledger of looks at the test split, in the project's folder. It is committed beside the results.

Each line is a network that was evaluated on the test split, written when its result is first reported: the spec, the
key of the evaluation and the date (UTC), between tabs. Lines are only ever added.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stagedkd.plan.graph import Plan

LEDGER = "stagedkd.looks"


@dataclass(frozen=True)
class Looks:
    """How often the test split was looked at: evaluations of one spec and of the whole project. `problem` says why the
    ledger could not be read or written, "" if it could."""

    spec: int
    project: int
    problem: str = ""

    @property
    def note(self) -> str:
        """The looks in words; "" if there were none."""
        if self.problem:
            return f"this look at the test split is not in {LEDGER}: {self.problem}"
        if not self.project:
            return ""
        own = f"{self.spec} network{'s' * (self.spec != 1)} of this spec"
        return f"looks at the test split so far, by {LEDGER}: {own}, {self.project} of the project"


def record_looks(plans: Iterable[Plan], root: Path) -> Looks:
    """Add a line for each evaluation on the test split that the ledger lacks, and count the looks.

    Args:
        plans: those whose results are reported. root: the project's folder.
    """
    plans = list(plans)
    keys = {
        stage.key: _spec_of(plan, root)
        for plan in plans
        for stage in plan.of_role("evaluate")
        if stage.key and getattr(stage.work, "split", "") == "test"
    }
    if not keys:
        return Looks(0, 0)
    ledger = root / LEDGER
    try:
        known = _read(ledger)
        today = datetime.now(UTC).date().isoformat()
        new = {str(key): spec for key, spec in keys.items() if str(key) not in known}
        _append(ledger, "".join(f"{spec}\t{key}\t{today}\n" for key, spec in new.items()))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Looks(0, 0, f"{ledger.name} cannot be written: {reason}")
    every, own = known | new, set(keys.values())
    return Looks(sum(spec in own for spec in every.values()), len(every))


def _append(ledger: Path, text: str) -> None:
    """Add text to the ledger by one write, so that lines of several processes are not mixed."""
    if not text:
        return
    if ledger.exists() and ledger.stat().st_size and not ledger.read_bytes().endswith(b"\n"):
        text = "\n" + text  # an editor has left the last line without its end
    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, text.encode("utf-8"))
    finally:
        os.close(descriptor)


def _read(ledger: Path) -> dict[str, str]:
    """Return the spec of each key in the ledger. A line of another form, such as a merge's mark, is left out."""
    if not ledger.exists():
        return {}
    rows = [line.split("\t") for line in ledger.read_text("utf-8").splitlines()]
    return {row[1]: row[0] for row in rows if len(row) == 3}


def _spec_of(plan: Plan, root: Path) -> str:
    """Return the path of a plan's spec below the root; its name if it is from no file."""
    file = plan.spec.origin.file
    if not file:
        return plan.name
    try:
        return Path(file).resolve().relative_to(root.resolve()).as_posix().replace("\t", " ")
    except ValueError:
        return Path(file).name
