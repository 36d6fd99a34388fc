"""bench.json in the report: it is shown where it is of that student, and named where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagedkd import compile_plan, load_spec, run, write_report
from stagedkd.deploy.bench import bench as measure
from stagedkd.deploy.student import find_student
from stagedkd.plan.runtime import load_runtime
from stagedkd.report.bench import Bench, read_bench
from stagedkd.report.card import read_card
from tests.conftest import REPO, TINY
from tests.pages import plain

DIGEST = "a" * 64
SPEC = TINY.replace("epochs: 3", "epochs: 1").replace("cascade: [0.5]", "cascade: []")


def timing(runtime: str, spread: float = 0.05) -> dict[str, object]:
    values = {"median": 0.00123, "p95": 0.0042, "spread": spread, "throughput": 981.4, "batch": 8}
    return {"runtime": runtime, **values, "memory": None, "bytes": 12_345}


def bench(weights: str = DIGEST, *timings: dict[str, object]) -> dict[str, object]:
    where = {"threads": 1, "machine": "a <fast> CPU", "cores": 2, "load": 0.25}
    return {"weights": weights, **where, "timings": list(timings or (timing("torch"),))}


def test_a_bench_of_the_student_is_read(tmp_path: Path) -> None:
    assert read_bench(tmp_path, DIGEST) == (None, "")
    (tmp_path / "bench.json").write_text(json.dumps(bench(DIGEST, timing("torch"), timing("onnx", 0.3))), "utf-8")
    found, problem = read_bench(tmp_path, DIGEST)
    assert found is not None and not problem and found.as_json() == json.loads((tmp_path / "bench.json").read_text())
    assert found.note == "the machine was busy: the latency of onnx varied by more than 20% between turns"
    assert found.taken_on == "a <fast> CPU, 1 thread of 2 cores, load 0.2 before"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no bench of this version: Invalid JSON"),
        (b"\xff\xfe\x00", "no bench of this version"),
        (b"[" * 100_000, "no bench of this version"),
        (json.dumps(bench())[:-9].encode(), "no bench of this version: Invalid JSON"),
        (b"[]", "no bench of this version"),
        (json.dumps({**bench(), "timings": [{**timing("torch"), "median": -1}]}).encode(), "at timings.0.median"),
        (json.dumps({**bench(), "threads": "1"}).encode(), "at threads"),
        (json.dumps(bench("b" * 64)).encode(), "of another student (bbbbbbbbbbbb)"),
        (json.dumps(bench()).replace("0.00123", "NaN").encode(), "at timings.0.median"),
        (json.dumps(bench()).replace("0.00123", "1" + "0" * 5000).encode(), "no bench of this version"),
    ],
)
def test_another_bench_is_named_and_not_shown(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "bench.json").write_bytes(content)
    found, problem = read_bench(tmp_path, DIGEST)
    assert found is None and said in problem and "\n" not in problem
    assert f"{tmp_path / 'bench.json'} is not shown" in problem and f"run stagedkd bench {tmp_path} again" in problem


def test_a_bench_that_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench.json").mkdir()
    assert "cannot be read: Is a directory" in read_bench(tmp_path, DIGEST)[1]
    (tmp_path / "bench.json").rmdir()
    (tmp_path / "bench.json").symlink_to("bench.json")
    assert "cannot be read: " in read_bench(tmp_path, DIGEST)[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run."""
    place = tmp_path_factory.mktemp("project")
    (place / "specs").mkdir()
    (place / "specs" / "tiny.yaml").write_text(SPEC, "utf-8")
    (place / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    run(load_spec(place / "specs" / "tiny.yaml"), load_runtime(place))
    return place


@pytest.fixture
def folder(place: Path) -> Path:
    """The results of the run, without a bench."""
    (place / "results/tiny/bench.json").unlink(missing_ok=True)
    report(place)
    return place / "results/tiny"


def report(place: Path) -> str:
    """Write the report again. Returns the page."""
    runtime = load_runtime(place)
    write_report(compile_plan(load_spec(place / "specs" / "tiny.yaml")), runtime)
    return (place / "results/tiny/report.html").read_text("utf-8")


def stagedkd(place: Path, *words: str) -> str:
    """Run the command. Returns what it prints."""
    command = [sys.executable, "-m", "stagedkd.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_report_written_again_shows_the_bench(place: Path, folder: Path) -> None:
    before = (folder / "report.html").read_text("utf-8")
    assert "<h2>Bench</h2>" not in before and "bench.json" not in before
    stagedkd(place, "bench", "results/tiny")
    made = Bench.model_validate_json((folder / "bench.json").read_bytes())
    assert made.weights == read_card(folder / "student.json").weights
    assert [each.runtime for each in made.timings] == ["torch", "teacher"]
    stagedkd(place, "report", "specs/tiny.yaml")
    table = plain((folder / "report.html").read_text("utf-8")).partition("<h2>Bench</h2>")[2].partition("<h2>")[0]
    for each in made.timings:
        assert f"<th>{each.runtime}</th><td>{1000 * each.median:.2f} ms</td>" in table
    assert f"<td>{made.timings[0].spread:.0%}</td>" in table and made.machine in table and "1 thread" in table


@pytest.mark.slow
def test_a_report_names_the_bench_of_another_student(place: Path, folder: Path) -> None:
    for content, said in (("spam", "no bench of this version"), (bench("b" * 64), "of another student")):
        (folder / "bench.json").write_text(json.dumps(content), "utf-8")
        page = report(place)
        assert said in page.partition("<h2>Results</h2>")[0] and "<h2>Bench</h2>" not in page
        assert "bench.json" not in (folder / "metrics.json").read_text("utf-8")
    printed = stagedkd(place, "report", "specs/tiny.yaml")
    assert "of another student (bbbbbbbbbbbb)" in " ".join(printed.split())


@pytest.mark.slow
def test_the_words_of_a_bench_cannot_break_the_page(place: Path, folder: Path) -> None:
    weights = read_card(folder / "student.json").weights
    (folder / "bench.json").write_text(json.dumps(bench(weights, timing("<script>x", 0.3))), "utf-8")
    page = report(place)
    assert "<script>x" not in page and "&lt;script&gt;x" in page and "a &lt;fast&gt; CPU" in page
    assert "The machine was busy: the latency of" in page


@pytest.mark.slow
def test_two_equal_networks_of_a_report_take_the_same_time(
    place: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Student and control have one architecture. In turns, their latencies differ by less than 10%."""
    student = find_student(folder)
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    (control,) = (place / "store").glob(f"teach-{metrics['control']['key'][:12]}*")
    assert metrics["control"]["arch"] == metrics["student"]["arch"] and control.is_dir()
    measured = measure(student, {"student": student.weights.path, "control": control}, 1)
    first, second = measured.timings
    with capsys.disabled():
        rows = "; ".join(f"{t.runtime} {1000 * t.median:.2f} ms, spread {t.spread:.0%}" for t in measured.timings)
        print(f"\n{rows}; {first.median / second.median:.3f} times; {measured.taken_on}")
    if measured.note:
        pytest.skip(measured.note)
    assert abs(first.median / second.median - 1) < 0.1
