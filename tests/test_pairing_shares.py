"""Pairing by correlation: which substages carry the match, in grow and in joint phases, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagedkd import compile_plan, load_spec, run
from stagedkd.plan.work import DistillWork
from stagedkd.report.plots.maps import shares_map
from stagedkd.spec.pairing import Matching, band
from stagedkd.spec.schema import Losses
from stagedkd.store.store import Store
from stagedkd.train.adapters import FeatureAdapters
from stagedkd.train.correlation import Probe
from stagedkd.train.loop import fit
from stagedkd.train.mixture import depth_of, mixture_shares, share_matrix
from tests.test_train import CUT, job, networks, phase

HINT = Losses.model_validate({"hint": 1.0})


def of_band(students: int, teachers: int, trained: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The pairs of a phase, with a teacher of as many substages as asked."""
    cut = tuple((f"block{m}",) for m in range(teachers))
    return Matching("correlation", cut, band(students, teachers)).of(trained)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_grow_phase_gives_the_whole_match_to_what_it_trains(
    students: int, teachers: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, students - 1))
    rho = [[data.draw(st.floats(0, 1)) for _ in range(teachers)] for _ in range(students)]
    pairs = of_band(students, teachers, (k,))
    assert pairs and {student for student, _ in pairs} == {k}
    assert all(dict(row) == {k: 1.0} for row in mixture_shares(pairs, rho).values())


@given(st.integers(1, 6), st.integers(1, 6))
def test_the_grow_phases_together_reach_every_teacher_substage_once(students: int, teachers: int) -> None:
    reached = [m for k in range(students) for _, m in of_band(students, teachers, (k,))]
    assert set(reached) == set(range(teachers))
    assert len(reached) == max(students, teachers)  # a shared teacher substage only where the student has more


def test_joint_shares_follow_the_softmax_over_the_band() -> None:
    """Three against three by hand: rows 1 and 3 have two neighbours, row 2 has three."""
    rho = [[0.9, 0.5, 0.0], [0.8, 0.6, 0.3], [0.1, 0.4, 0.7]]
    found = mixture_shares(of_band(3, 3, (0, 1, 2)), rho)
    for m, ks in {0: (0, 1), 1: (0, 1, 2), 2: (1, 2)}.items():
        raised = np.exp([rho[k][m] / 0.1 for k in ks])
        assert [found[m][k] for k in ks] == pytest.approx((raised / raised.sum()).tolist()) and set(found[m]) == set(ks)
    assert share_matrix(found, 3, 3)[2][0] is None and share_matrix({}, 1, 2) == [[None, None]]


def test_an_untrained_substage_loses_nothing_by_its_low_correlation() -> None:
    """The frozen substage 1 looks like everything, the new substage 2 like nothing: 2 still carries its match."""
    rho = [[0.99, 0.99, 0.99], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert mixture_shares(of_band(3, 3, (1,)), rho) == {1: {1: 1.0}}
    both = mixture_shares(of_band(3, 3, (1, 2)), rho)
    assert both[1] == pytest.approx({1: 0.5, 2: 0.5}) and both[2] == pytest.approx({1: 0.5, 2: 0.5})


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_the_expected_depth_never_falls(students: int, teachers: int, data: st.DataObject) -> None:
    """Of any subset of substages and any correlations; rows that the softmax has in order stay as they are."""
    trained = data.draw(st.sets(st.integers(0, students - 1), min_size=1))
    rho = [[data.draw(st.floats(0, 1)) for _ in range(teachers)] for _ in range(students)]
    pairs = of_band(students, teachers, tuple(sorted(trained)))
    found = mixture_shares(pairs, rho)
    depths = [depth_of(row) for row in found.values()]
    assert list(found) == sorted(found) and all(b >= a - 1e-9 for a, b in zip(depths, depths[1:], strict=False))
    plain: list[float] = []
    for m, row in found.items():
        assert sum(row.values()) == pytest.approx(1) and min(row.values()) > 0
        raised = {k: np.exp(rho[k][m] / 0.1) for k in row}
        plain.append(float(sum(k * w for k, w in raised.items()) / sum(raised.values())))
    if all(b > a for a, b in zip(plain, plain[1:], strict=False)):
        assert depths == pytest.approx(plain)


def test_a_broken_order_is_mended_by_the_least_change() -> None:
    """Rows whose depths fall get their common mean, by the tilt that is nearest in KL: no other row of that mean is
    nearer to the softmax."""
    pairs, rho = tuple((k, m) for m in range(2) for k in range(3)), [[0.0, 0.5], [0.1, 0.2], [0.5, 0.0]]
    found = mixture_shares(pairs, rho)
    raised = np.exp(np.array(rho) / 0.1)
    plain = raised / raised.sum(0)
    depths = np.arange(3) @ plain
    assert depths[0] > depths[1]
    generator = np.random.default_rng(0)
    for m in range(2):
        row = np.array([found[m][k] for k in range(3)])
        assert row @ np.arange(3) == pytest.approx(depths.mean())
        divergence = (row * np.log(row / plain[:, m])).sum()
        for step in generator.normal(size=20) * 1e-3:
            other = row + step * np.array([1, -2, 1])  # keeps the sum and the mean
            assert (other * np.log(other / plain[:, m])).sum() > divergence


def test_shares_are_kept_by_phase_and_epoch(tmp_path: Path) -> None:
    """In the events and in what goes on to the artifact; training with them changes the mixture's substages."""
    phases = (
        phase(name="grow", trained=(1,), frozen=(0,), pairs=((1, 1),), head=False, losses=HINT, epochs=2),
        phase(name="joint", pairs=band(3, 3), losses=Losses.model_validate({"hint": 1.0, "kd": 1.0}), epochs=2),
        phase(name="kd"),
    )
    torch.manual_seed(3)
    adapters = FeatureAdapters("correlation", phases, {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32})
    work = job(tmp_path, phases, adapters=adapters)
    probe = Probe(work.feed.source, list(range(24)), networks()[1], (CUT, CUT), (None, None))
    at = fit(job(tmp_path, phases, adapters=adapters, probe=probe))
    assert [(row["phase"], row["epoch"]) for row in at.mixtures] == [
        ("grow", 1),
        ("grow", 2),
        ("joint", 1),
        ("joint", 2),
    ]
    assert at.mixtures[0]["shares"] == [[None] * 3, [None, 1.0, None], [None] * 3]
    joint = np.array(at.mixtures[2]["shares"], float)
    assert np.isnan(joint[2, 0]) and np.isnan(joint[0, 2]) and np.allclose(np.nansum(joint, 0), 1)
    assert (np.nanmin(joint) > 0) and not np.allclose(np.nan_to_num(joint), np.eye(3))
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text("utf-8").splitlines()]
    assert [row.get("shares") for row in rows] == [*(row["shares"] for row in at.mixtures), None]


def test_mixed_shares_are_equal_and_need_no_correlation(tmp_path: Path) -> None:
    """The control of `correlation`: the same band, modules and grids, and the plain mean of the projected maps."""
    pairs, torch_maps = band(3, 3), {0: (4, 6), 1: (8, 4), 2: (16, 2)}
    joint = phase(pairs=pairs, losses=HINT, epochs=2)
    adapters = FeatureAdapters("mixed", (joint,), {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}).double()
    student = {k: torch.randn(2, width, 2, side, side).double() for k, (width, side) in torch_maps.items()}
    teacher = {m: torch.randn(2, 2 * width, 2, side, side).double() for m, (width, side) in torch_maps.items()}
    compared = adapters.make_pairs(joint, student, teacher, None)
    assert len(compared) == 3 and all(pair.rho is None for pair in compared)
    for m, ks in {0: (0, 1), 1: (0, 1, 2), 2: (1, 2)}.items():
        side = min(torch_maps[k][1] for k in ks)
        pooled = [torch.nn.functional.adaptive_avg_pool3d(student[k], (2, side, side)) for k in ks]
        mean = sum(adapters.projectors[f"{k + 1}-{m + 1}"](x) for k, x in zip(ks, pooled, strict=True)) / len(ks)
        assert torch.allclose(compared[m].student, mean) and compared[m].teacher.shape[3:] == (side, side)
    trained = fit(
        job(tmp_path, (joint,), adapters=FeatureAdapters("mixed", (joint,), {0: 4, 1: 8, 2: 16}, {0: 8, 1: 16, 2: 32}))
    )
    assert trained.mixtures == [] and trained.rho is None


@given(st.integers(1, 6), st.integers(1, 6))
def test_mixed_shares_are_equal_in_any_band(students: int, teachers: int) -> None:
    """They are in the order of depth as they are, so that no row is tilted."""
    zeros = [[0.0] * teachers] * students
    for row in mixture_shares(band(students, teachers), zeros).values():
        assert row == pytest.approx({k: 1 / len(row) for k in row})


@pytest.mark.slow
def test_a_hop_keeps_its_shares_and_the_report_shows_them(project: Path) -> None:
    from stagedkd.report.collect import collect
    from stagedkd.report.page import experiment_page

    grown = ["distill.pairing=correlation", "control=null", "cascade=[]"]
    spec = load_spec("specs/tiny.yaml", grown)
    outcome = run(spec)
    kept = json.loads(outcome.artifacts["student"].file("correlation.json").read_text("utf-8"))["mixtures"]
    assert [(row["phase"], row["epoch"]) for row in kept] == [("grow.1", 1), ("grow.2", 1), ("joint", 1), ("joint", 2)]
    assert kept[0]["shares"] == [[1.0, None], [None, None]] and kept[1]["shares"] == [[None, None], [None, 1.0]]
    html = experiment_page(collect(outcome.plan, Store(Path(outcome.runtime.store)))).text
    assert "Shares of the student's substages in the mixture" in html


def test_the_heat_map_of_shares_has_a_row_for_each_compared_pair() -> None:
    mixtures = [
        {"phase": "grow.1", "epoch": 1, "shares": [[1.0, None], [None, None]]},
        {"phase": "joint", "epoch": 1, "shares": [[0.75, None], [0.25, 1.0]]},
    ]
    svg = shares_map("student", mixtures, ["first", "second"], ["low", "high"]).svg
    assert svg.startswith("<svg")
    for name in ("first for low", "second for low", "second for high"):
        assert f">{name}</text>" in svg
    assert (
        "first for high" not in svg and svg == shares_map("student", mixtures, ["first", "second"], ["low", "high"]).svg
    )


def test_the_kind_of_work_has_a_new_version(project: Path) -> None:
    work = compile_plan(load_spec("specs/tiny.yaml")).stage("student").work
    assert isinstance(work, DistillWork) and work.version == 7
