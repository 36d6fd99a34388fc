"""`stagedkd.looks`: the ledger of looks at the test split."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stagedkd.plan.compile import compile_experiment
from stagedkd.report.looks import LEDGER, record_looks
from stagedkd.spec.load import load_experiment
from tests.conftest import Command

SPEC = """\
data: {kind: shapes, classes: 4, train: 32, val: 16, test: 16}
clip: {frames: 4, size: 16}
train: {batch: 16, warmup_epochs: 0}
teacher: {arch: resnet3d, width: 4, blocks: [1, 1], epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1], epochs: 1}
distill: {phases: {train: {losses: {ce: 1.0, kd: 1.0}}}}
evaluate: {split: test}
"""


def plans(text: str = SPEC, name: str = "x.yaml"):
    Path(name).write_text(text, "utf-8")
    return list(compile_experiment(load_experiment(name)).cells.values())


def test_a_line_is_written_once_for_each_evaluation(project: Path) -> None:
    both = plans()
    assert record_looks(both, project).note == (
        "looks at the test split so far, by stagedkd.looks: 2 networks of this spec, 2 of the project"
    )
    lines = (project / LEDGER).read_text("utf-8").splitlines()
    assert len(lines) == 2 and all(re.fullmatch(r"x\.yaml\t[0-9a-f]{64}\t\d{4}-\d\d-\d\d", line) for line in lines)
    assert {line.split("\t")[1] for line in lines} == {s.key for s in both[0].of_role("evaluate")}
    assert record_looks(both, project).project == 2 and (project / LEDGER).read_text("utf-8").splitlines() == lines
    other = record_looks(plans(SPEC + "seed: 3\n", "y.yaml"), project)  # shares the teacher, whose line names x.yaml
    assert (other.spec, other.project) == (1, 3)
    assert (project / LEDGER).read_text("utf-8").splitlines()[:2] == lines


def test_validation_is_no_look(project: Path) -> None:
    looks = record_looks(plans(SPEC.replace("split: test", "split: val")), project)
    assert looks.note == "" and not (project / LEDGER).exists()


def test_a_ledger_that_cannot_be_written_is_said(project: Path) -> None:
    (project / LEDGER).mkdir()
    looks = record_looks(plans(), project)
    assert looks.note == (
        "this look at the test split is not in stagedkd.looks: stagedkd.looks cannot be written: Is a directory"
    )


def test_other_lines_stay_and_do_not_count(project: Path) -> None:
    (project / LEDGER).write_bytes(b"<<<<<<< ours\nz.yaml\tabc\t2026-01-01\n")
    assert record_looks(plans(), project).project == 3
    assert (project / LEDGER).read_bytes().startswith(b"<<<<<<< ours\nz.yaml\tabc\t2026-01-01\nx.yaml\t")


def test_a_last_line_without_its_end_is_not_joined(project: Path) -> None:
    (project / LEDGER).write_bytes(b"z.yaml\tabc\t2026-01-01")
    record_looks(plans(), project)
    assert record_looks(plans(), project).project == 3


def test_several_processes_do_not_mix_lines(project: Path) -> None:
    seeds = [plans(SPEC + f"seed: {seed}\n", f"s{seed}.yaml") for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda cells: record_looks(cells, project), seeds))
    lines = (project / LEDGER).read_text("utf-8").splitlines()
    assert all(len(line.split("\t")) == 3 for line in lines)
    assert len({line.split("\t")[1] for line in lines}) == 9  # eight students and one teacher


@pytest.mark.slow
def test_run_and_report_count_the_looks(project: Path, stagedkd: Command) -> None:
    Path("x.yaml").write_text(SPEC, "utf-8")
    done = stagedkd("run", "x.yaml", "--no-dvc")
    note = "looks at the test split so far, by stagedkd.looks: 2 networks of this spec, 2 of the project"
    assert done.returncode == 0 and f"note: {note}" in done.stdout, done.stderr
    (html,) = Path().rglob("report.html")
    assert note in html.read_text("utf-8")
    assert "stagedkd.looks" not in html.with_name("metrics.json").read_text("utf-8")  # its bytes do not change
    assert len((project / LEDGER).read_text("utf-8").splitlines()) == 2
