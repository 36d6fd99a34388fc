"""What a page shows beside the results: its first sentences, answers, wrong clips, validation, files and commands."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagedkd.plan.graph import Plans
from stagedkd.report.collect import collect, validation_events
from stagedkd.report.evidence import Evidence, Predictions, commit_of, read_mistakes
from stagedkd.report.grid import collect_grid
from stagedkd.report.grid_page import grid_headline, grid_page
from stagedkd.report.headline import headline
from stagedkd.report.page import experiment_page
from stagedkd.report.plots.answers import reliability
from stagedkd.report.plots.curves import best_validation
from stagedkd.report.plots.settings import costs, front
from stagedkd.report.results import Results, Validation
from stagedkd.report.statistics import paired_clips
from stagedkd.report.tables import class_table, confusion_table, refinement_table
from stagedkd.stages.mistakes import CLIPS, FILE, FRAMES, LIMIT, SIDE, write_mistakes
from stagedkd.store.store import Store
from tests.conftest import Command
from tests.pages import FILES, ROUND, bare, full, make_grid


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plans, Store]:
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def results(made: tuple[Plans, Store]) -> Results:
    return collect(made[0].cells["recipe=staged,train.lr=0.01,seed=0"], made[1])


# The first sentences


def test_the_paired_interval_by_hand() -> None:
    mean, low, high = paired_clips(12, 4, 100)
    a, b = 13 / 102, 5 / 102
    half = 1.959963985 * ((a + b - (a - b) ** 2) / 102) ** 0.5
    assert (mean, low, high) == pytest.approx((0.08, a - b - half, a - b + half))
    assert paired_clips(0, 0, 1)[1:] == pytest.approx((-0.924, 0.924), abs=1e-3)  # one clip tells next to nothing


def test_the_paired_interval_covers_the_truth() -> None:
    dice, chances, clips = np.random.default_rng(3), (0.15, 0.05, 0.8), 60
    draws = [paired_clips(int(a), int(b), clips) for a, b, _ in dice.multinomial(clips, chances, 2000)]
    assert 0.94 < np.mean([low <= 0.1 <= high for _, low, high in draws]) < 0.98


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_paired_interval_is_antisymmetric(first: int, second: int) -> None:
    (mean, low, high), (turned, below, above) = paired_clips(first, second, 100), paired_clips(second, first, 100)
    assert (mean, low, high) == pytest.approx((-turned, -above, -below)) and low <= mean <= high


def answers_of(results: Results, student: int, control: int, both: int) -> Evidence:
    """Of 200 clips: those that only the student has right, only the control, and both."""
    rows = [(1, 0)] * student + [(0, 1)] * control + [(1, 1)] * both
    rows += [(0, 0)] * (200 - len(rows))
    columns = zip(*rows, strict=True)
    names = ("student", "control-ce")
    return Evidence(
        {n: Predictions(range(200), [1] * 200, list(c), [0.9] * 200) for n, c in zip(names, columns, strict=True)}
    )


@pytest.mark.parametrize(
    ("student", "control", "said"),
    [
        (40, 5, "It is 17.5 points better than its control, the same network without a teacher, which has 60.0% (95%"),
        (5, 40, "It is 17.5 points worse than its control"),
        (
            9,
            6,
            "It is 1.5 points above its control, the same network without a teacher, which has 60.0%, and 200 clips are too",
        ),
        (
            6,
            9,
            "It is not better than its control, the same network without a teacher, which has 60.0%: it is 1.5 points below",
        ),
        (7, 7, "It is not better than its control"),
    ],
)
def test_the_headline_says_what_the_clips_show(results: Results, student: int, control: int, said: str) -> None:
    network = replace(results.student, top1=(100 + student) / 200, interval=(0.55, 0.7))
    found = replace(results, student=network, control=replace(network, name="control-ce", top1=0.6))
    sentences = headline(found, answers_of(found, student, control, 100))
    assert said in sentences[-1], sentences
    assert ("too few to tell which is better (95% interval of the difference" in sentences[-1]) == (
        abs(student - control) < 5
    )


def test_without_answers_the_headline_compares_intervals(results: Results) -> None:
    network = replace(results.student, top1=0.6, interval=(0.55, 0.7))
    found = replace(
        results, student=network, control=replace(network, name="control-ce", top1=0.65, interval=(0.6, 0.7))
    )
    assert "not better than its control" in headline(found)[-1] and "the intervals overlap" in headline(found)[-1]
    clear = replace(found, control=replace(network, name="control-ce", top1=0.3, interval=(0.2, 0.4)))
    assert headline(clear)[-1] == "It is better than its control, the same network without a teacher, which has 30.0%."


def test_the_headline_knows_what_was_not_measured(results: Results) -> None:
    found, evidence = bare(results)
    (first,) = headline(found, evidence)
    assert first.startswith("The student has 100 parameters. It gets 70.0% of 200 validation clips right (95% interval")
    (unmeasured,) = headline(replace(found, student=found.teacher), evidence)
    assert unmeasured.endswith("Its accuracy was not measured.")
    chance = replace(found, student=replace(found.student, interval=(0.4, 0.6), classes=2))
    assert "no better than a network that ignores the clips" in headline(chance, evidence)[-1]


def test_the_headline_of_a_grid_names_the_best_setting(made: tuple[Plans, Store]) -> None:
    grid = collect_grid(*made)
    first, second = grid_headline(grid)
    assert first.startswith("Of 5 settings, recipe=staged,train.lr=0.01 has the highest mean top-1: 70.3% over 7 seeds")
    assert (
        second
        == "That it is better than the baseline, recipe=kd,train.lr=0.001, is not shown: +18.9 points over 7 paired seeds."
    )
    assert (
        grid_headline(collect_grid(*made, "recipe=staged"))[1]
        == "It is the baseline that the others are compared with."
    )
    missing = {name: "not run" for name in grid.cells if "recipe=kd" in name}
    some = replace(grid, cells={n: r for n, r in grid.cells.items() if n not in missing}, missing=missing)
    left = sum("recipe=kd" not in row.name for row in grid.rows)
    assert grid_headline(some)[0].startswith(f"Of {left} settings that have a result, recipe=staged")
    one = {n: r for n, r in grid.cells.items() if "recipe=staged,train.lr=0.01" in n}
    (only,) = grid_headline(replace(grid, cells=one, missing={n: "not run" for n in grid.cells if n not in one}))
    assert only.startswith("Of 5 settings, recipe=staged,train.lr=0.01 alone has a result: 70.3% over 7 seeds (95%")


# Answers and costs


def test_classes_are_counted_by_the_labels_that_were_given(results: Results) -> None:
    found, evidence = full(results)
    table = class_table(found, evidence)
    assert table.heads[:4] == ["class", "labelled", "noisy", "evaluated"] and len(table.rows) == 8
    assert [row[1:4] for row in table.rows] == [["15", "15", "50"]] * 8


def test_the_most_confused_pairs_come_first(results: Results) -> None:
    labels, predicted = [0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 0, 1]
    found = Predictions(range(7), labels, predicted, [0.5] * 7)
    table = confusion_table(results, Evidence({"student": found}))
    assert table and [tuple(row) for row in table.rows] == [("a", "b", "3 of 4"), ("b", "a", "1 of 3")]


def test_bins_of_the_reliability_diagram() -> None:
    found = Predictions(range(4), [0, 0, 1, 1], [0, 1, 1, 1], [0.55, 0.58, 1.0, 0.99])
    low, high = reliability(found)
    assert (low.number, low.clips, low.accuracy) == (5, 2, 0.5) and low.confidence == pytest.approx(0.565)
    assert (high.number, high.clips, high.accuracy) == (9, 2, 1.0)  # a confidence of 1 is in the last bin


def test_the_pareto_front_by_brute_force(made: tuple[Plans, Store]) -> None:
    grid = collect_grid(*made)
    dice = random.Random(1)
    cells = {n: replace(c, student=replace(c.student, params=dice.randrange(50, 500))) for n, c in grid.cells.items()}
    found = replace(grid, cells=cells)
    (_, parameters) = costs(found)
    assert [cost.name for cost in costs(found)] == ["compute", "parameters"]
    points = {i: (row.params, row.student.top1) for i, row in enumerate(found.rows) if row.student}
    best = {
        i for i, (x, y) in points.items() if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    }
    assert set(front(found, parameters)) == best


def test_where_nobody_knows_the_truth_none_is_spoken_of(results: Results) -> None:
    found, evidence = full(results)
    unknown = replace(ROUND, before=None, after=None, precision=None)
    page = experiment_page(replace(found, refinements=(unknown,), labels_right=None), evidence).text
    assert "Label refinement" in page and "hidden truth" not in page and "Nobody knows the true labels" in page
    assert "right before" not in refinement_table([unknown]).heads
    assert "hidden truth" in experiment_page(found, evidence).text
    assert "Label refinement" not in experiment_page(replace(found, refinements=()), evidence).text


# Validation while training


def test_validations_are_read_from_the_events_of_a_training() -> None:
    rows = [
        {
            "event": "validation",
            "phase": "joint",
            "epoch": e,
            "step": 9 * e,
            "top1": e % 3 / 3,
            "loss": 1.0,
            "clips": 40,
        }
        for e in (1, 2, 3, 5)
    ]
    events = [{"event": "epoch"}, *rows, {"event": "validation", "phase": "of a later version"}]
    found = validation_events(SimpleNamespace(log=SimpleNamespace(events=events)))  # type: ignore[arg-type]
    assert [v.step for v in found] == [9, 18, 27, 45] and found[0] == Validation("joint", 1, 9, 1 / 3, 1.0, 40)
    assert best_validation(found).epoch == 2  # the earliest of the best


def test_the_page_says_why_the_last_checkpoint_counts(results: Results) -> None:
    found, evidence = full(results)
    page = experiment_page(found, evidence).text
    assert "<h2>Validation while training</h2>" in page and "would flatter it" in " ".join(page.split())
    assert "Validation while training" not in experiment_page(replace(found, validation={}), evidence).text


# The page as a file


def test_a_page_is_one_file_without_scripts_that_asks_no_network(results: Results, made: tuple[Plans, Store]) -> None:
    for text in (experiment_page(*full(results), files=FILES).text, grid_page(collect_grid(*made)).text):
        assert len(text.encode("utf-8")) < 2_000_000 and "default-src 'none'" in text
        assert "<script" not in text and not re.search(r"""(src|href)=["'](https?:|//)""", text.replace(" xmlns", ""))
        ids = re.findall(r' id="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert {name for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for name in name if name} <= set(
            ids
        )


def test_plots_have_real_text_names_and_colours_of_the_page(results: Results) -> None:
    page = experiment_page(*full(results))
    for plot in page.plots:
        assert plot.svg.count("<text") > 3 and 'role="img"' in plot.svg and f">{plot.title}</title>" in plot.svg
        assert "DejaVu" not in plot.svg and not re.search(r"#(0072b2|1d2431|5b6473)", plot.svg)
    assert len({plot.name for plot in page.plots}) == len(page.plots) > 10
    first, again = page.plots[0].files(), experiment_page(*full(results)).plots[0].files()
    assert first == again and first["networks.pdf"].startswith(b"%PDF") and first["networks.png"][1:4] == b"PNG"


def test_links_lead_to_what_lies_beside_the_page(results: Results, made: tuple[Plans, Store]) -> None:
    page = experiment_page(
        results, files=[Path("demo"), Path("student.json"), Path("export/onnx"), Path("notes.txt")]
    ).text
    for link in ("demo/index.html", "student.json", "export/onnx/"):
        assert f'href="{link}"' in page
    assert "notes.txt" not in page and "student.safetensors" not in page
    grid = collect_grid(*made)
    name = next(iter(grid.cells))
    assert f'<a href="../x/report.html">{name}</a>' in grid_page(grid, pages={name: "../x/report.html"}).text


def test_a_page_names_no_folder_of_the_machine(results: Results, tmp_path: Path) -> None:
    found = replace(results, data={**results.data, "leaks": [[f"{tmp_path}/a.mp4", f"{Path.home()}/b.mp4"]]})
    page = experiment_page(found, notes=[f"{tmp_path}/bench.json is damaged"], root=tmp_path).text
    assert str(tmp_path) not in page and f"{Path.home()}/" not in page and "~/b.mp4" in page and "bench.json is" in page


def test_the_commit_of_a_project_without_git_is_unknown(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""


# Wrong clips


class Noise:
    """A source of clips that no picture format can make small."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.shape = (1, 3, frames, height, width)

    def views(self, clip_ids: list[int], clips: int, crops: int) -> list[torch.Tensor]:
        return [torch.rand(self.shape, generator=torch.Generator().manual_seed(clip_ids[0]))]


def written(folder: Path, source: Any, right: float = 0.0, count: int = 30) -> bytes:
    dice = np.random.default_rng(0)
    scores = dice.dirichlet([1.0, 1.0, 1.0], count).astype(np.float32)
    labels = np.where(dice.random(count) < right, scores.argmax(1), (scores.argmax(1) + 1) % 3)
    paths = [f"videos/{i}.mp4" for i in range(2 * count)]
    write_mistakes(folder, source, paths, np.arange(count) + count, labels, scores, ["a", "b", "c"])
    return (folder / FILE).read_bytes()


def test_the_most_confident_wrong_clips_are_kept_with_small_pictures(tmp_path: Path) -> None:
    content = written(tmp_path, Noise(16, 224, 168))
    rows = json.loads(content)["clips"]
    assert len(rows) == CLIPS and len(content) <= LIMIT and content == written(tmp_path, Noise(16, 224, 168))
    confidence = [row["confidence"] for row in rows]
    assert confidence == sorted(confidence, reverse=True) and all(row["label"] != row["predicted"] for row in rows)
    assert all(row["path"] == f"videos/{row['clip']}.mp4" and row["clip"] >= 30 for row in rows)
    picture = Image.open(io.BytesIO(base64.b64decode(rows[0]["picture"])))
    assert rows[0]["frames"] == FRAMES and rows[0]["size"] == [SIDE, SIDE * 3 // 4]
    assert picture.size == (FRAMES * SIDE * 3 // 4, SIDE)


def test_short_clips_and_few_mistakes_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = json.loads(written(tmp_path, Noise(3, 24, 24), right=0.9))["clips"]
    assert 0 < len(rows) < CLIPS and {row["frames"] for row in rows} == {3} and rows[0]["size"] == [24, 24]
    assert json.loads(written(tmp_path, Noise(3, 24, 24), right=1.0)) == {"clips": []}


def test_an_artifact_of_an_earlier_version_has_no_wrong_clips() -> None:
    assert read_mistakes(SimpleNamespace(manifest=SimpleNamespace(files={}))) == ()  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_page_of_a_run_has_its_wrong_clips_and_files(project: Path, stagedkd: Command) -> None:
    assert stagedkd("run", "specs/tiny.yaml", "--no-dvc").returncode == 0
    folder = project / "results/tiny"
    assert "For print" not in (folder / "report.html").read_text("utf-8") and not list((folder / "plots").iterdir())
    (project / "params.yaml").write_text("runtime: {device: cpu, threads: 1}\n", "utf-8")
    (folder / "plots" / "of-another-spec.png").write_bytes(b"")
    assert stagedkd("report", "specs/tiny.yaml").returncode == 0
    page = (folder / "report.html").read_text("utf-8")
    assert page.count('class="film moves"') == len(re.findall(r"<code>shapes:\d+</code>", page)) > 0
    assert str(project) not in page and "stagedkd run specs/tiny.yaml" in page and 'href="student.safetensors"' in page
    printed = {path.name for path in (folder / "plots").iterdir()}
    linked = set(re.findall(r'href="plots/([^"]+)"', page))
    assert printed == linked and "networks.pdf" in printed
