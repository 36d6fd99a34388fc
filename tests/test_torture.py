"""The campaign of benchmarks/torture.py: its verdicts can fail, and a little of each attack finds nothing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stagedkd.errors import UsageError
from tests.conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))
import torture
import torture_bytes
import torture_runs
from torture_bytes import Flips
from torture_runs import Process, Said, Verdict

NAME = "store/distill-0123456789ab/files/manifest.json"


@pytest.mark.slow
def test_a_little_of_each_attack_finds_nothing_wrong(tmp_path: Path) -> None:
    counts = ("kills=1", "flips=3", "specs=200", "tables=20", "videos=3", "faults=2", "together=1")
    command = [sys.executable, "benchmarks/torture.py", "--json", str(tmp_path / "found.json"), "--counts", *counts]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert found["wrong"] == [] and set(found["attacks"]) == set(torture.ATTACKS)
    for count in counts:
        name, _, number = count.partition("=")
        assert sum(found["attacks"][name].get(kind, 0) for kind in torture.KINDS) >= int(number)


def judged(place: Path, monkeypatch: pytest.MonkeyPatch, **said: Said) -> tuple[str, str]:
    """The verdict on a flipped bit of a manifest, where the commands say this."""
    (place / NAME).parent.mkdir(parents=True, exist_ok=True)
    (place / NAME).write_bytes(b"flipped")
    monkeypatch.setattr(torture_bytes, "call", lambda _place, name, *_: said.get(name, Said(0, "")))
    attack = object.__new__(Flips)
    attack.data, attack.shown, attack.reference = (), {"top1": 0.5, "seconds": 3.0}, {NAME[len("store/") :]: b"flipped"}
    return attack._judge(place, place / NAME, b"whole", exact=True)


def test_another_number_without_a_word_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture_runs.tempfile, "tempdir", str(tmp_path))
    right = Said(0, '{"top1": 0.5, "seconds": 3.0}')
    assert judged(tmp_path, monkeypatch, show=right) == ("right", "")
    for text in ('{"top1": 0.75, "seconds": 3.0}', '{"top1": 0.5, "seconds": 4.0}'):
        kind, why = judged(tmp_path, monkeypatch, show=Said(0, text))
        assert kind == "wrong" and "other numbers" in why
    named = Said(1, "error: manifest.json was changed\n  help: nothing can be done")
    kind, why = judged(tmp_path, monkeypatch, show=right, run=named)
    assert kind == "wrong" and "the hint cannot be followed" in why
    alarm = Said(1, "error: other.json is damaged")
    kind, why = judged(tmp_path, monkeypatch, show=right, store=alarm)
    assert kind == "wrong" and "does not name the file" in why
    assert judged(tmp_path, monkeypatch, show=Said(0, '{"top1": 0.5, "seconds": 4.0}'), store=named)[0] == "named"
    for fault in (Said(1, torture_runs.TRACEBACK), Said(70, "internal error")):
        assert judged(tmp_path, monkeypatch, show=right, run=fault)[0] == "wrong"


def test_other_bits_and_left_overs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture_runs.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torture_runs, "END_SECONDS", 0.1)
    assert torture_runs.difference({"a": b"1"}, {"a": b"2"}) == "a has other bits"
    assert torture_runs.difference({}, {"a": b"2"}) == "a is missing"
    assert torture_runs.difference({"a": b"1"}, {}) == "a is too many"
    (tmp_path / "store/.work/jobs-1").mkdir(parents=True)
    assert "jobs-1" in torture_runs.remains(tmp_path / "store")
    process = Process(tmp_path, ["bash", "-c", "sleep 60 & echo said; exit 3"])
    assert process.end() == Said(3, "said\n")
    assert "sleep 60" in process.left_over() and not process.alive()


def test_a_hang_and_an_error_of_python_are_wrong() -> None:
    def hang() -> Verdict:
        while True:
            pass

    def fail() -> Verdict:
        raise UsageError("no place")

    assert "HangError" in torture_runs.guarded(0.05, "spec", hang).text
    assert torture_runs.guarded(5, "spec", fail) == Verdict("wrong", "spec: UsageError without a place: no place")
    assert torture_runs.guarded(5, "spec", lambda: Verdict(1 / 0)).kind == "wrong"


def test_a_wrong_verdict_is_told_with_what_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Third:
        def __init__(self, _folder: Path) -> None: ...

        def trial(self, number: int, dice: random.Random) -> Sequence[Verdict]:
            return [Verdict("wrong", f"it is {dice.random():.4f}") if number == 2 else Verdict("right")]

    attacks: dict[str, Any] = {"specs": (Third, 1)}
    for name in ("ATTACKS", "ALL"):
        monkeypatch.setattr(torture, name, attacks)
    monkeypatch.setitem(os.environ, "TMPDIR", str(tmp_path))
    outputs: list[str] = []
    for words, code in (("--counts specs=2", 0), ("--counts specs=4", 1), ("--only specs --number 2", 1)):
        monkeypatch.setattr(sys, "argv", ["torture.py", "--seed", "5", *words.split()])
        monkeypatch.setattr(torture.tempfile, "tempdir", str(tmp_path))
        with pytest.raises(SystemExit) as stop:
            torture.main()
        assert stop.value.code == code
        outputs.append(capsys.readouterr().out)
    assert "WRONG --seed 5 --only specs --number 2: it is" in outputs[1]
    assert outputs[2].splitlines()[0] == outputs[1].splitlines()[0]
