"""A campaign of attacks on stagedkd, with small projects that it makes in a temporary folder.

    python benchmarks/torture.py [--seed N] [--minutes M] [--counts kills=20 specs=1000 faults=all ...]
                                 [--only NAME ...] [--number N] [--json FILE]

An attack with a count runs to it; the others share the minutes (2 without the option, for slow cores). An attempt ends
in the right bits or numbers (right), or in an error that names the file or the place (named), or it is wrong. A wrong
one is printed with the seed and the number that repeat it: --seed S --only NAME --number N.

The exit status is 1 if anything was wrong: other bits under a key, other numbers without a word, a traceback, the exit
code 70, a hang, a process that outlives its command by 5 s, or something left behind by a run that has completed.

Attacks:
    kills     signals to commands and to their ranks and workers, at random times
    flips     random bits of the files of a project that has run, or was stopped
    specs     mutated texts of the shipped specs, through the Python API
    tables    mutated tables and lists of videos
    videos    mutated videos of several containers, through the stage `data`
    faults    what machines refuse and people do: torture_faults.yaml
    together  two runs on one store, beside gc and verify
    exchange  own code or weights exchanged while ranks, workers or jobs use them (only if named)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml
from torture_bytes import Flips, Specs, Tables, Videos
from torture_exchange import Exchange
from torture_runs import (
    REPO,
    RUN,
    Kills,
    Process,
    Verdict,
    call,
    command,
    difference,
    files_of,
    make_project,
    remains,
)

TELL_SECONDS = 60.0  # from one look at the counts to the next
KINDS = ("right", "named", "wrong")


class Attack(Protocol):
    """Attacks of one kind. It is made with an empty folder of its own; a trial depends on its number and dice alone."""

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Try once. Returns one verdict, or several of a batch."""
        ...


FAULTS = REPO / "benchmarks" / "torture_faults.yaml"


class Together:
    """Two runs at once on one store, one of a spec and one that no spec knows, with gc and verify in a loop beside
    them. The second one is protected by its record alone, and by its lease."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_project(folder / "start")
        for store, words in (("one", RUN), ("two", (*RUN, "--set", "seed=1"))):
            said = call(folder / "start", *words, "--store", f"../{store}", "--results", f"../results-{store}")
            if said.code:
                raise RuntimeError(f"the reference failed: {said}")
        self.expected = files_of(folder / "one") | files_of(folder / "two")

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Run both to their ends."""
        place = self.folder / "trial"
        shutil.copytree(self.folder / "start", place)
        jobs = dice.choice([(), ("--jobs", "2")])
        first = Process(place, command(*RUN, *jobs))
        time.sleep(dice.uniform(0, 3))
        second = Process(place, command(*RUN, "--set", "seed=1", "--results", "other"))
        wrong, rounds = "", 0
        while any(each.popen.poll() is None for each in (first, second)):
            said = call(place, *dice.choice([("store", "verify"), ("store", "gc", "--yes")]))
            wrong = wrong or (f"beside the runs: {said.text[-500:]}" if said.code else "")
            rounds += 1
            time.sleep(dice.uniform(0, 0.3))
        for process in (first, second):
            said = process.end()
            failed = f"exit code {said.code}: {said.text[-700:]}" if said.code else ""
            wrong = wrong or said.fault or failed or process.left_over()
        wrong = wrong or difference(files_of(place / "store"), self.expected) or remains(place / "store")
        shutil.rmtree(place)
        text = f"{' '.join(jobs) or 'one process'}, {rounds} times gc or verify"
        return [Verdict("wrong", f"{text}: {wrong}") if wrong else Verdict("right", text)]


class Faults:
    """Each fault of the machine or of a file in torture_faults.yaml: the command fails with a sentence that names the
    place; what was there stays; and when the fault is gone, a run gives the right bits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.rows: list[dict[str, Any]] = yaml.safe_load(FAULTS.read_bytes())
        make_project(folder / "start")
        said = call(folder / "start", *RUN)
        if said.code:
            raise RuntimeError(f"the reference failed: {said}")
        self.reference = files_of(folder / "start" / "store")

    def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
        """Try one fault; the numbers go round."""
        row, place = self.rows[number % len(self.rows)], self.folder / "trial"
        if row.get("root") and os.getuid():
            print(f"left out, since only root can be another user: {row['fault']}")
            return []
        shutil.copytree(self.folder / "start", place)
        try:
            wrong = self._try(row, place)
        finally:
            subprocess.run(["chmod", "-R", "u+rwX", str(place)], check=False)
            shutil.rmtree(place)
        return [Verdict("wrong" if wrong else "named", f"{row['fault']}: {wrong}")]

    def _try(self, row: Mapping[str, Any], place: Path) -> str:
        """Make the fault, run the command, undo the fault, run to the end. Returns what is wrong."""
        program = f"stagedkd='{' '.join(command())}' python={sys.executable}\n"
        prepared = subprocess.run(["bash", "-ec", program + row.get("before", "")], cwd=place, check=False)
        process = Process(place, ["bash", "-c", program + row["command"]])
        said = process.end()
        wrong = said.fault or process.left_over() or ("the fault cannot be made" if prepared.returncode else "")
        if said.code not in row.get("codes", [1, 2]):
            wrong = wrong or f"exit code {said.code}: {said.text[-500:]}"
        if not re.search(row["says"], said.text) or ("never" in row and re.search(row["never"], said.text)):
            wrong = wrong or f"it does not say what it should: {said.text[-700:]}"
        subprocess.run(["bash", "-c", program + row.get("after", "")], cwd=place, check=False)
        lost = self.reference.keys() - files_of(place / "store").keys()
        if lost and not row.get("loses"):
            wrong = wrong or f"lost: {min(lost)}"
        after = call(place, *RUN)
        if after.code or after.fault:
            return wrong or f"afterwards: exit code {after.code}: {after.text[-700:]}"
        return wrong or difference(files_of(place / "store"), self.reference) or remains(place / "store")


# name -> the attack, and its share of the time
ATTACKS: dict[str, tuple[Any, int]] = {
    "kills": (Kills, 34),
    "flips": (Flips, 18),
    "specs": (Specs, 8),
    "tables": (Tables, 6),
    "videos": (Videos, 8),
    "faults": (Faults, 16),
    "together": (Together, 10),
}
ALL = ATTACKS | {"exchange": (Exchange, 10)}  # and those that run only if they are named


@dataclass
class Tally:
    """What came of the attacks of one kind."""

    counts: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def add(self, verdict: Verdict, repeat: str) -> None:
        """Count a verdict."""
        self.counts[verdict.kind] += 1
        if verdict.kind == "wrong":
            self.wrong.append(f"{repeat}: {verdict.text}")
            print(f"WRONG {self.wrong[-1]}", flush=True)
        elif "CRASHED" in verdict.text:
            self.notes.append(f"{repeat}: {verdict.text}")


def campaign(
    name: str, folder: Path, seed: int, numbers: Iterator[int], wanted: float, seconds: float, *, talks: bool
) -> Tally:
    """Try one kind of attack.

    Args:
        numbers: of the trials. wanted: how many verdicts. seconds: the time for them, of which one
            trial may take more. talks: whether each verdict is printed.
    """
    tally, started, told = Tally(), time.monotonic(), 0.0
    folder.mkdir()
    attack: Attack = ALL[name][0](folder)
    for number in numbers:
        try:
            verdicts = attack.trial(number, random.Random(f"{seed} {name} {number}"))
        except Exception as error:  # it must not end the campaign
            verdicts = [Verdict("wrong", f"the attack itself: {type(error).__name__}: {error}")]
            shutil.rmtree(folder / "trial", ignore_errors=True)
        for verdict in verdicts:
            tally.add(verdict, f"--seed {seed} --only {name} --number {number}")
            if talks:
                print(f"{verdict.kind}: {verdict.text}")
        tally.seconds = time.monotonic() - started
        if tally.seconds - told > TELL_SECONDS:
            told = tally.seconds
            print(table({name: tally}).splitlines()[1], file=sys.stderr)
        if tally.counts.total() >= wanted or tally.seconds > seconds:
            break
    return tally


def table(tallies: Mapping[str, Tally]) -> str:
    """The table of counts."""
    rows: list[tuple[str, ...]] = [("attack", "tried", *KINDS, "seconds")]
    for name, tally in tallies.items():
        row = (tally.counts.total(), *(tally.counts[kind] for kind in KINDS))
        rows.append((name, *map(str, row), f"{tally.seconds:.0f}"))
    return "\n".join(f"{row[0]:<10}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)


def counts_of(words: Sequence[str]) -> dict[str, float]:
    """Read `name=count`; faults=all are those of the table."""
    counts: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in ALL or not (number.isdecimal() or word == "faults=all"):
            sys.exit(f"--counts {word}: write NAME=COUNT, with NAME one of {', '.join(ALL)}")
        counts[name] = faults() if number == "all" else int(number)
    return counts


def faults() -> int:
    """The number of faults in the table."""
    return len(yaml.safe_load(FAULTS.read_bytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--counts", nargs="+", default=[], metavar="NAME=COUNT")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ATTACKS), metavar="NAME")
    parser.add_argument("--number", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts, tallies = counts_of(options.counts), dict[str, Tally]()
    left = 60.0 * options.minutes
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # one attack comes from another user
        (folder / "tmp").mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
        for attack in options.only:
            shares = [ALL[each][1] for each in options.only if each not in tallies and each not in counts]
            seconds = float("inf") if attack in counts else left * ALL[attack][1] / sum(shares)
            numbers = count() if options.number is None else iter([options.number])
            wanted = counts.get(attack, float("inf"))
            tallies[attack] = campaign(
                attack, folder / attack, options.seed, numbers, wanted, seconds, talks=options.number is not None
            )
            left -= 0.0 if attack in counts else tallies[attack].seconds
    print(table(tallies))
    for tally in tallies.values():
        print(*tally.notes, sep="\n", end="\n" if tally.notes else "")
    wrong = [line for tally in tallies.values() for line in tally.wrong]
    if options.json:
        values = {name: {**tally.counts, "seconds": tally.seconds} for name, tally in tallies.items()}
        options.json.write_text(json.dumps({"seed": options.seed, "attacks": values, "wrong": wrong}, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
