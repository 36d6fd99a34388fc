"""Validation while a network trains: what it measures, and that it changes no bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from stagedkd import load_spec, run
from stagedkd.plan.graph import Plan
from stagedkd.plan.runtime import load_runtime
from stagedkd.stages.context import Silent
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Store
from stagedkd.train.validate import MOST, rarely, some_of_each
from tests.tools import files_of

SHORT = ("cascade=[]", "teacher.epochs=2")


class Shown(Silent):
    def __init__(self) -> None:
        self.top1: list[float | None] = []

    def step(self, fields: Mapping[str, Any]) -> None:
        self.top1.append(fields["top1"])


def trained(project: Path, store: str, *overrides: str, listener: Silent | None = None) -> tuple[Plan, Store]:
    runtime = load_runtime(project, store=project / store)
    plan = run(load_spec("specs/tiny.yaml", [*SHORT, *overrides]), runtime, listener or Silent()).plan
    return plan, Store(runtime.folder("store"))


def validations(plan: Plan, store: Store, name: str) -> list[Mapping[str, Any]]:
    return [event for event in store.artifact(plan.stage(name)).log.events if event["event"] == "validation"]


def test_validating_changes_no_bit_and_no_key(project: Path) -> None:
    shown = Shown()
    plan, store = trained(project, "a", listener=shown)
    other, without = trained(project, "b", "evaluate.every=0")
    assert files_of(project / "a") == files_of(project / "b")
    assert [stage.key for stage in plan.stages] == [stage.key for stage in other.stages]
    assert not validations(other, without, "student")
    assert None in shown.top1 and validations(plan, store, "student")[0]["top1"] in shown.top1


def test_the_last_validation_is_the_evaluation_of_the_result(project: Path) -> None:
    """TINY's joint phase averages its weights, and validation measures the average. Its 16 clips are all of the split."""
    plan, store = trained(project, "a")
    for name in ("teacher", "student", "control-ce"):
        evaluated = store.artifact(plan.stage(f"evaluate-{name}"))
        last, table = validations(plan, store, name)[-1], read_table(evaluated.read("predictions.parquet"))
        assert last["clips"] == 16 and last["top1"] == evaluated.manifest.metrics["top1"]
        right = np.array(table["predicted"]) == np.array(table["label"])
        assert last["top1"] == right.mean()
        # where it is right, the confidence is the probability of the label, which bounds the loss from below
        assert last["loss"] >= -np.log(np.array(table["confidence"], np.float64))[right].sum() / 16 - 1e-6
    assert [(e["phase"], e["epoch"]) for e in validations(plan, store, "student")] == [("joint", 1), ("joint", 2)]
    assert [e["epoch"] for e in validations(plan, store, "control-ce")] == [1, 2, 3, 4]


def test_a_phase_ends_with_a_validation_whatever_the_interval(project: Path) -> None:
    plan, store = trained(project, "a", "evaluate.every=3", "evaluate.split=test")
    events = validations(plan, store, "control-ce")
    assert [e["epoch"] for e in events] == [3, 4] and [e["step"] for e in events] == [9, 12]
    splits = read_table(store.artifact(plan.stage("data")).read("clips.parquet"), "split")["split"]
    assert {e["clips"] for e in events} == {splits.count("val")}


@given(st.integers(1, MOST), st.integers(1, 10**6))
def test_validation_is_rare_where_an_epoch_has_few_clips(validated: int, trained: int) -> None:
    """An eighth at most, where a validated clip takes a third of a trained one: half a unit is lost by rounding."""
    assert validated / 3 / (rarely(validated, trained) * trained) <= 1 / 8


def test_how_rare_it_is() -> None:
    assert rarely(256, 1200) == 1  # the quickstart
    assert rarely(256, 80) == 13 and rarely(30, 60) == 2 and rarely(1, 10**6) == 1


def test_unset_means_by_the_length_of_an_epoch(project: Path) -> None:
    plan, store = trained(project, "a", "data.val=40")
    events = validations(plan, store, "control-ce")
    assert [e["epoch"] for e in events] == [3, 4]  # 4 * 40 / 48
    assert {e["clips"] for e in events} == {40}


@given(st.lists(st.integers(0, 11), max_size=5 * MOST), st.booleans())
def test_some_clips_are_some_of_each_class(classes: list[int], in_turn: bool) -> None:
    """Whatever the order: also where a data set lists its classes in turn, which a fixed step would meet in part."""
    labels = np.arange(len(classes)) % 8 if in_turn else np.array(classes, np.int64)
    clip_ids: npt.NDArray[np.int64] = np.arange(len(labels), dtype=np.int64) + 7
    some, classes_of = some_of_each(clip_ids, labels)
    assert classes_of.tolist() == labels[some - 7].tolist()
    assert len(some) == min(len(labels), MOST) and some.tolist() == sorted(set(some.tolist()))
    assert np.isin(some, clip_ids).all()
    for label in set(labels.tolist()):
        expected = (labels == label).mean() * len(some)
        assert abs((labels[some - 7] == label).sum() - expected) <= 1.01, label
