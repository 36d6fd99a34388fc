"""What the terminal shows: help by task, what is left of a run, tables that fit, and what to do next."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stagedkd import compile_plan, load_spec
from stagedkd.cli import PANELS
from stagedkd.plan.key import Key
from stagedkd.report.progress import RunProgress, WholeRun
from stagedkd.report.results import NetworkResult
from stagedkd.report.terminal import NARROW, results_table
from tests.conftest import Command

SECONDS = st.floats(0.1, 1e4)


def test_help_shows_commands_by_task_and_everyday_ones_first(stagedkd: Command) -> None:
    text = stagedkd("--help", COLUMNS="120").stdout
    at = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert at == sorted(at) and "─ Commands ─" not in text
    first = re.findall(r"^│ (\w+)", text[at[0] : at[1]], re.M)
    assert first == ["init", "check", "plan", "run", "show", "report", "docs"]
    assert text.index("│ stage ") > at[-1]  # only DVC calls it


@given(st.lists(SECONDS, min_size=2, max_size=6), st.floats(0.2, 5))
def test_what_has_ended_corrects_what_is_expected_of_the_rest(seconds: list[float], slower: float) -> None:
    keys = [Key(str(number)) for number in range(len(seconds))]
    whole = WholeRun(dict(zip(keys, seconds, strict=True)))
    assert whole.seconds(0.0) == pytest.approx(sum(seconds))
    whole.end(keys[0], slower * seconds[0])
    assert whole.seconds(0.0) == pytest.approx(slower * sum(seconds[1:]))
    whole.left[keys[1]] = 3.0  # what a stage says of itself counts for it
    whole.begun[keys[1]] = 0.0
    assert whole.seconds(1.0) >= 3.0
    for key in keys:
        whole.end(key)
    assert whole.seconds(1.0) == 0.0 and whole.text == "0 stages left"


@given(SECONDS, SECONDS)
def test_stages_side_by_side_share_the_time(one: float, other: float) -> None:
    whole = WholeRun({Key("a"): one, Key("b"): other})
    whole.begun = {Key("a"): 0.0, Key("b"): 0.0}
    assert whole.seconds(0.0) == pytest.approx(max(one, other, (one + other) / 2))


def test_lines_tell_what_is_left_and_the_accuracy_on_validation(project: Path) -> None:
    plan = compile_plan(load_spec("specs/tiny.yaml"))
    console = Console(width=160, file=io.StringIO(), color_system=None)
    teacher = plan.stage("teacher")
    step = {"losses": {"ce": 1.0}, "phase": "train", "epoch": 1, "epochs": 2, "clips_per_s": 9.0, "seconds": 60.0}
    with RunProgress(console, 1) as progress:
        progress.expect({stage.identity: 300.0 for stage in plan.stages})
        progress.stage(3, 10, teacher, "miss")
        progress.step({**step, "done": 0.5, "top1": 0.375})
        progress.finished(teacher, 60.0)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert f"running ({teacher.folder}); 10 stages left, about 50 min" in text
    assert "train 1/2  ce 1  val 37.5%  9 clips/s  ETA 60 s" in text
    assert progress.whole.text == "9 stages left, about 9 min"  # 9 x 60 s: the others take a fifth, too


class Found:
    """Results of two networks."""

    def __init__(self) -> None:
        facts = {"per_class": {}, "flops": 5_000_000, "labels": "same", "labelled_clips": 12, "training_clips": 12}
        facts |= {"steps": 9, "train_flops": 10**12, "seconds": 1.0, "key": "k", "top5": None, "ece": 0.1}
        self.teacher, self.student = (
            NetworkResult(name, "arch", 0.5, (0.4, 0.6), params=size, latency=0.01, size=4 * size, **facts)
            for name, size in (("teacher", 10**9), ("student", 10**6))
        )
        self.networks = [self.teacher, self.student]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_table_of_results_fits_and_says_what_it_leaves_out(width: int) -> None:
    table = results_table(Found(), width)  # type: ignore[arg-type]
    console = Console(width=300, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines[:3])) <= width
    shown = [column for column in NARROW if column in lines[0]]
    left_out = [column for column in NARROW if column not in shown]
    assert NARROW[: len(left_out)] == tuple(left_out)
    assert (f"too narrow for {', '.join(left_out)}" in " ".join(lines)) == bool(left_out)
    assert "latency" not in shown or "10.0 ms" in lines[1]
