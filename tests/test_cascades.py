"""Cascades: assistants by share have the student's settings unless they have their own, and never a size twice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagedkd.errors import SpecError
from stagedkd.plan.compile import compile_plan
from stagedkd.plan.work import DistillWork
from stagedkd.spec.cascade import LARGEST_HOP, assistants
from stagedkd.spec.load import load_experiment, load_spec
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.networks.resnet3d import WIDTHS, resnet3d_trunk_params, width_for

BASE = """\
data: {kind: shapes, classes: 4, train: 48, val: 16, test: 16}
clip: {frames: 4, size: 16}
train: {batch: 16, lr: 1e-2, weight_decay: 0.05}
teacher: {arch: resnet3d, width: 16, blocks: [1, 1, 1], epochs: 4}
cascade: CASCADE
student: {arch: resnet3d, width: 4, blocks: [1, 1, 1], epochs: 6, train: {lr: 2e-2}}
distill: {phases: {train: {losses: {ce: 0.1, kd: 0.9}}}}
"""
LISTED = "{arch: resnet3d, width: 8, blocks: [1, 1, 1]}"


def spec_file(project: Path, cascade: str, *edits: tuple[str, str]) -> Path:
    text = BASE.replace("CASCADE", cascade)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = project / "specs" / "mine.yaml"
    path.write_text(text, "utf-8")
    return path


def settings(project: Path, cascade: str) -> list[tuple[float, float, int]]:
    """The rate, the weight decay and the epochs of each assistant's training."""
    plan = compile_plan(load_spec(spec_file(project, cascade)))
    works = [stage.work for stage in plan.of_role("assistant")]
    phases = [work.phases[0] for work in works if isinstance(work, DistillWork)]
    return [(phase.train.lr, phase.train.weight_decay, phase.epochs) for phase in phases]


def test_an_assistant_by_share_has_the_students_settings_unless_it_has_its_own(project: Path) -> None:
    own = "{share: 0.3, epochs: 9, train: {weight_decay: 0.1}}"
    assert settings(project, f"[0.5, {own}]") == [(2e-2, 0.05, 6), (2e-2, 0.1, 9)]
    assert settings(project, "[{share: 0.3, train: {lr: 3e-2}}]") == [(3e-2, 0.05, 6)]
    assert settings(project, "auto") == [(2e-2, 0.05, 6)]
    assert settings(project, f"[{LISTED}]") == [(1e-2, 0.05, 6)]  # in full: the spec's defaults


def test_a_share_with_settings_equal_to_the_students_has_the_key_of_a_bare_share(project: Path) -> None:
    def key(cascade: str) -> str:
        return compile_plan(load_spec(spec_file(project, cascade))).stage("assistant-1").identity

    assert key("[0.3]") == key("[{share: 0.3}]") == key("[{share: 0.3, train: {lr: 2e-2}, epochs: 6}]")
    assert key("[0.3]") != key("[{share: 0.3, train: {lr: 1e-2}}]")


@pytest.mark.parametrize(
    ("cascade", "edits", "column", "message", "hint"),
    [
        (
            "[0.5, 0.06]",
            (),
            16,
            "assistant 2 is the student itself (resnet3d w4 1-1-1): it would be trained twice",
            "shares with a size of their own: 0.19 (width 7), 0.14 (width 6), 0.1 (width 5); or remove it",
        ),
        (
            "[0.26, {share: 0.24}]",
            (),
            17,
            "assistant 2 is assistant 1 again (resnet3d w8 1-1-1)",
            "shares with a size of their own: 0.19 (width 7), 0.14 (width 6), 0.1 (width 5); or remove it",
        ),
        (
            "[0.99]",
            (),
            11,
            "assistant 1 is as large as the teacher (225,712 of 225,712 parameters)",
            "shares with a size of their own: 0.77 (width 14), 0.56 (width 12), 0.39 (width 10); or remove it",
        ),
        (
            "[0.7]",
            (("width: 16", "width: 5"),),
            11,
            "assistant 1 is the student itself (resnet3d w4 1-1-1): it would be trained twice",
            "no size between student and teacher is left: remove it",
        ),
        ("[0.2, 0.5]", (), 1, "shares must go from large to small", "write [0.5, 0.2]"),
        ("[{share: 1.5}]", (), 19, "'cascade.0.share' must be below 1, not 1.5", "allowed: above 0, below 1"),
        (
            "[{share: 0.5, width: 8}]",
            (),
            24,
            "unknown key 'cascade.0.width'",
            "known keys: share, epochs, train",
        ),
    ],
)
def test_an_assistant_without_a_size_of_its_own_is_refused_at_its_entry(
    project: Path, cascade: str, edits: tuple[tuple[str, str], ...], column: int, message: str, hint: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(spec_file(project, cascade, *edits))
    found = [(p.place and (p.place.line, p.place.column), p.message, p.hint) for p in caught.value.problems]
    assert found == [((5, column), message, hint)]


def test_the_shares_that_a_hint_names_are_those_sizes(project: Path) -> None:
    for share, width in ((0.19, 7), (0.14, 6), (0.1, 5), (0.77, 14)):
        (assistant,) = assistants(load_spec(spec_file(project, f"[{share}]")))
        assert assistant.model_dump()["width"] == width


def test_generations_of_one_network_are_allowed_in_full_and_said(project: Path) -> None:
    student = "{arch: resnet3d, width: 4, blocks: [1, 1, 1]}"
    experiment = load_experiment(spec_file(project, f"[{LISTED}, {LISTED}, {student}]"))
    assert [note.message for note in experiment.notes] == [
        "assistant 2 is assistant 1 again (resnet3d w8 1-1-1)",
        "assistant 3 is the student itself (resnet3d w4 1-1-1): it would be trained twice",
    ]


@given(
    st.integers(4, 64), st.integers(4, 128), st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple[int, ...])
)
def test_auto_gives_no_twins_and_keeps_every_hop_within_8x(small: int, large: int, blocks: tuple[int, ...]) -> None:
    spec = load_spec_of(small, large, blocks)
    sizes = [network.trunk_params or 0 for network in (spec.teacher, *assistants(spec), spec.student)]
    if large > small:
        assert all(above > below for above, below in pairwise(sizes))
        # the nearest width may be a little off the geometric mean
        assert all(above / below <= 1.4 * LARGEST_HOP for above, below in pairwise(sizes))
    else:
        assert len(sizes) == 2


def test_a_wide_hop_is_said_with_what_the_spec_can_still_do(project: Path) -> None:
    gap = [
        "teacher={arch: resnet3d, width: 32, blocks: [1, 1, 1], epochs: 3}",
        "student.width=8",
        "student.blocks=[1, 1]",
    ]
    listed = "8x is the usual limit; list assistants to come below it"

    def hint(*sets: str) -> str:
        found = load_experiment("specs/tiny.yaml", sets).notes
        return next(note.hint for note in found if "x gap" in note.message)

    assert hint(*gap, "cascade=[]") == "8x is the usual limit; cascade: auto adds assistants"
    assert hint(*gap, "cascade=auto") == listed  # its nearest width gives 8.3x
    shifted = "student={$replace: {arch: tsm, backbone: mobilenet_v3_small, substages: 2}}"
    large = "teacher={$replace: {arch: r2plus1d_18, epochs: 3}}"
    assert hint("cascade=[]", shifted, large) == listed  # only a resnet3d can be widened


def load_spec_of(small: int, large: int, blocks: tuple[int, ...]) -> Spec:
    return Spec.model_validate(
        {
            "data": {"kind": "shapes", "classes": 4, "train": 48, "val": 16, "test": 16},
            "teacher": {"arch": "resnet3d", "width": large, "blocks": blocks, "epochs": 4},
            "cascade": "auto",
            "student": {"arch": "resnet3d", "width": small, "blocks": blocks, "epochs": 4},
            "distill": {"phases": {"train": {"losses": {"kd": 1.0}}}},
            "name": "x",
        }
    )


@pytest.mark.parametrize("conv", ["full", "r2plus1d", "mixed"])
def test_widths_are_finer_where_networks_are_small_and_the_nearest_is_taken(conv: str) -> None:
    assert WIDTHS[:8] == (4, 5, 6, 7, 8, 10, 12, 14) and WIDTHS[-1] == 1024 and {32, 36, 40} <= set(WIDTHS)
    assert 30 in WIDTHS and 34 not in WIDTHS
    sizes = [resnet3d_trunk_params(width, (1, 2), conv) for width in WIDTHS]
    assert sizes == sorted(sizes) and [width_for(size, (1, 2), conv) for size in sizes] == list(WIDTHS)
    middle = (sizes[0] + sizes[1]) / 2
    assert (width_for(middle - 1, (1, 2), conv), width_for(middle + 1, (1, 2), conv)) == (4, 5)
