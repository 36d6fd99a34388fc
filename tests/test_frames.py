"""`evaluate.frames`: clips with their frames shuffled, or one frame alone, as a control of what a task needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagedkd import load_spec, run
from stagedkd.data.views import arrange_frames
from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_experiment, compile_plan
from stagedkd.report.collect import collect
from stagedkd.report.headline import headline
from stagedkd.spec.schema import Frames
from stagedkd.spec.tuning import load_tuning
from stagedkd.store.store import Store

MOTION = """\
data: {kind: shapes, classes: [right, left, down, up], train: 320, val: 160, test: 16, noise: 0.02}
clip: {frames: 8, size: 16}
augment: {crop: 1.0}
train: {batch: 16, lr: 1e-2, warmup_epochs: 0.5}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 8}
student: {arch: resnet3d, width: 4, blocks: [1], epochs: 1}
distill: {phases: {train: {losses: {kd: 1.0}}}}
"""


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 10**6), st.sampled_from(["shuffled", "single"]))
def test_frames_are_arranged_by_clip(batch: int, length: int, first: int, frames: Frames) -> None:
    """Each clip keeps its frames in a drawn order, the same wherever it stands in a batch; or its middle one alone."""
    view_B3THW = torch.arange(batch * 3 * length * 4.0).reshape(batch, 3, length, 2, 2)
    ids = list(range(first, first + batch))
    arranged = arrange_frames(view_B3THW, ids, frames)
    assert arranged.shape == view_B3THW.shape and arrange_frames(view_B3THW, ids, None) is view_B3THW
    for row, clip_id in enumerate(ids):
        assert torch.equal(arranged[row], arrange_frames(view_B3THW[row, None], [clip_id], frames)[0])
        given, found = (view[row].transpose(0, 1).flatten(1).tolist() for view in (view_B3THW, arranged))
        assert sorted(found) == sorted(given) if frames == "shuffled" else found == [given[length // 2]] * length


def test_orders_differ_from_clip_to_clip() -> None:
    view_B3THW = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(200, 3, 8, 1, 1)
    arranged = arrange_frames(view_B3THW, range(200), "shuffled")[:, 0, :, 0, 0]
    assert len(torch.unique(arranged, dim=0)) > 190
    assert (arranged.mean(0) - 3.5).abs().max() < 1  # no frame has a favourite place


def test_frames_change_evaluations_alone_and_are_said(project: Path) -> None:
    plain = compile_plan(load_spec("specs/tiny.yaml"))
    for frames, words in (("shuffled", "on clips whose frames are shuffled"), ("single", "on one frame of each clip")):
        plan = compile_plan(load_spec("specs/tiny.yaml", [f"evaluate.frames={frames}"]))
        changed = {a.work.kind for a, b in zip(plan.stages, plain.stages, strict=True) if a.key != b.key}
        assert changed == {"evaluate"} and any(words in note for note in plan.notes)
    with pytest.raises(SpecError, match=r"'evaluate.frames' must be shuffled or single"):
        load_spec("specs/tiny.yaml", ["evaluate.frames=reversed"])


def test_a_control_of_frames_takes_the_choices_of_its_method(project: Path) -> None:
    """Tuning judges whole clips, so a setting whose frames are shuffled has the trials of the same one without."""
    tune = "tune: {values: {student.train.lr: [1e-3, 1e-2]}, seeds: [7, 8, 9]}\n"
    grid = "grid: {axes: {$m: {kd: {}, shuffled: {evaluate: {frames: shuffled}}}}}\n"
    (project / "specs" / "t.yaml").write_text(f"extends: tiny.yaml\n{grid}{tune}", "utf-8")
    trials, _ = load_tuning(Path("specs/t.yaml")).trials("student", {})
    plans = compile_experiment(trials)
    keys = [plan.stage("evaluate-student").key for plan in plans.cells.values()]
    assert len(keys) == 12 and len(set(keys)) == 6


@pytest.mark.slow
def test_shuffled_frames_hurt_where_motion_tells_the_classes_apart(project: Path) -> None:
    """Shuffled, a network knows at best the axis of a motion, which is half; of one frame it knows nothing."""
    (project / "specs" / "motion.yaml").write_text(MOTION, "utf-8")
    top1: dict[str, float] = {}
    films: dict[str, dict[int, str]] = {}
    for frames in ("null", "shuffled", "single"):
        plan = run(load_spec("specs/motion.yaml", [f"evaluate.frames={frames}"])).plan
        results = collect(plan, Store(project / "store"))
        top1[frames] = results.teacher.top1
        assert any("a control" in note for note in results.notes) == (frames != "null")
        words = {
            "null": "clips right",
            "shuffled": "their frames shuffled, right",
            "single": "one frame of each, right",
        }
        assert words[frames] in headline(results)[0]
        mistakes = json.loads(Store(project / "store").artifact(plan.stage("evaluate-student")).read("mistakes.json"))
        films[frames] = {clip["clip"]: clip["picture"] for clip in mistakes["clips"]}
    both = films["null"].keys() & films["shuffled"].keys()
    assert both and all(films["null"][clip] != films["shuffled"][clip] for clip in both)  # as the network saw them
    assert top1["null"] > 0.85 and top1["shuffled"] < 0.7 and top1["single"] < 0.45, top1
