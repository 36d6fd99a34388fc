"""Distributions in cells and frames, the teacher's variance as scale, and which losses tell a clip from its reversal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stagedkd import compile_plan, load_spec, losses
from stagedkd.errors import SpecError
from stagedkd.experiment.preflight import preflight
from stagedkd.losses.cells import cells_problem, teacher_variance
from stagedkd.spec.schema import LOGITS
from stagedkd.spec.schema.losses.whole import loss_sections
from tests.conftest import REPO

DISTRIBUTIONS = ("gaussian_w2", "gaussian_kl", "mmd", "coral", "sliced_w2")
AXES = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).double(), dim=1)
FIXED = {"sliced_w2": {"directions": AXES}}


def maps(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator).double()
    return student, 1.5 * teacher + 0.3


def value(name: str, student: Tensor, teacher: Tensor, **fields: object) -> float:
    return float(losses.FUNCTIONS[name](student, teacher, **FIXED.get(name, {}), **fields))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("samples", ["positions", "batch"])
def test_a_loss_in_cells_is_the_mean_of_the_loss_on_every_cell(name: str, samples: str) -> None:
    """Cells of an axis that they do not divide share a position, as in adaptive pooling: 5 in 2 are 0..3 and 2..5."""
    student, teacher = maps(0, 3, 5, 4, 5, 6)
    parts = [
        (..., slice(2 * t, 2 * t + 2), slice(*h), slice(2 * w, 2 * w + 2))
        for t in range(2)
        for h in ((0, 3), (2, 5))
        for w in range(3)
    ]
    expected = np.mean([value(name, student[part], teacher[part], samples=samples) for part in parts])
    assert value(name, student, teacher, samples=samples, cells=(2, 2, 3)) == pytest.approx(expected)
    assert value(name, student, teacher, samples=samples, cells=(1, 1, 1)) == pytest.approx(
        value(name, student, teacher, samples=samples)
    )


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_frames_have_a_distribution_each(name: str) -> None:
    student, teacher = maps(1, 3, 5, 4, 3, 4)
    if name == "mmd":  # its bandwidth is that of all sets together
        single = [feat.transpose(1, 2).reshape(12, 5, 1, 3, 4) for feat in (student, teacher)]
        assert value(name, student, teacher, samples="frames") == pytest.approx(value(name, *single))
        return
    each = [
        value(name, student[b : b + 1, :, t : t + 1], teacher[b : b + 1, :, t : t + 1], samples="positions")
        for b in range(3)
        for t in range(4)
    ]
    assert value(name, student, teacher, samples="frames") == pytest.approx(np.mean(each))


def test_gaussian_w2_in_cells_by_hand() -> None:
    """WKD-F's statistics, from the paper's formula: means and deviations of each cell, biased, over its positions."""
    student, teacher = (feat.numpy() for feat in maps(2, 2, 3, 2, 4, 4))
    total = 0.0
    for h in range(2):
        for w in range(2):
            cell = np.s_[:, :, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
            s, t = (f[cell].reshape(2, 3, -1) for f in (student, teacher))
            deviations = [np.sqrt(f.var(2) + 1e-5) for f in (s, t)]
            total += (2 * (s.mean(2) - t.mean(2)) ** 2 + (deviations[0] - deviations[1]) ** 2).sum(1).mean()
    found = value("gaussian_w2", *map(torch.from_numpy, (student, teacher)), gamma=2.0, cells=(1, 2, 2))
    assert found == pytest.approx(total / 4)


def test_auto_takes_the_batch_where_a_cell_has_one_position() -> None:
    student, teacher = maps(3, 4, 5, 2, 2, 2)
    for name in ("gaussian_w2", "gaussian_kl", "mmd", "sliced_w2"):
        auto, batch = (value(name, student, teacher, samples=s, cells=(2, 2, 2)) for s in ("auto", "batch"))
        assert auto == batch != value(name, student, teacher)


def test_cells_that_do_not_fit_are_refused_in_words() -> None:
    student, teacher = maps(4, 2, 5, 2, 4, 4)
    for name in DISTRIBUTIONS:
        with pytest.raises(ValueError, match=r"^cells \[4, 2, 2\] are more than the positions of the grid, 2x4x4: use"):
            losses.FUNCTIONS[name](student, teacher, cells=(4, 2, 2))
        with pytest.raises(ValueError, match=r"^cells \[2, 1, 1\]: under samples: frames each frame stands alone"):
            losses.FUNCTIONS[name](student, teacher, samples="frames", cells=(2, 1, 1))
    one = "a cell of a clip has one position of the grid, 2x4x4: one sample is no distribution"
    assert cells_problem((2, 4, 4), "positions", (2, 4, 4)) == (one, "use samples: batch")
    assert cells_problem((2, 4, 4), "auto", (2, 4, 4)) == ("", "") == cells_problem((1, 2, 1), "frames", None)
    assert cells_problem((2, 1, 1), "frames", None)[0].startswith("a frame has one position")


def test_cells_are_checked_against_the_grids_before_anything_is_trained(project: Path) -> None:
    loss = "distill.phases.grow.losses={gaussian_w2: {cells: [2, 8, 8]}}"
    spec = load_spec("specs/tiny.yaml", ["cascade=[]", loss])
    with pytest.raises(SpecError) as caught:
        preflight(compile_plan(spec), project)
    (problem,) = caught.value.problems
    assert problem.message == (
        "student, phase grow.2: 'gaussian_w2' on pair 2-2: cells [2, 8, 8] are more than the positions of the grid, 2x4x4"
    )
    assert problem.hint == "use at most [2, 4, 4]"
    preflight(compile_plan(load_spec("specs/tiny.yaml", ["cascade=[]", loss.replace("8, 8", "2, 2")])), project)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("{gaussian_w2: {samples: frames, cells: [2, 2, 2]}}", "the first number of cells must be 1"),
        ("{mmd: {taps: embedding, cells: [1, 2, 2]}}", "so cells cannot be used with taps: embedding"),
        ("{coral: {taps: embedding, samples: positions}}", "so samples: positions cannot be used"),
        ("{at: {taps: embedding}}", "this loss compares positions, and an embedding has one"),
        ("{sp: {taps: embedding}}", "never reaches them"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(project: Path, loss: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("specs/tiny.yaml", ["cascade=[]", f"distill.phases.grow.losses={{$replace: {loss}}}"])
    assert any(message in problem.message for problem in caught.value.problems)


def test_the_teachers_variance_is_the_unit_of_scaled_losses() -> None:
    """A student that gives the teacher's mean feature everywhere has the hint 1, and is as far by the distance of
    Gaussians, but for the positions' part; the scale of both networks does not count."""
    student, teacher = maps(5, 4, 6, 2, 3, 3)
    flat = teacher.numpy().transpose(1, 0, 2, 3, 4).reshape(6, -1)
    assert float(teacher_variance(teacher)) == pytest.approx(flat.var(1).mean())
    mean = teacher.mean((0, 2, 3, 4), keepdim=True).expand_as(teacher)
    assert value("hint", mean, teacher, scale="teacher_variance") == pytest.approx(1.0)
    for name, unit in (("hint", flat.var(1).mean()), ("gaussian_w2", flat.var(1).sum())):
        scaled = value(name, student, teacher, scale="teacher_variance")
        assert scaled == pytest.approx(value(name, student, teacher) / unit)
        assert value(name, 50 * student, 50 * teacher, scale="teacher_variance") == pytest.approx(scaled, rel=1e-3)
    still = torch.zeros(2, 3, 1, 2, 2).double()
    assert value("hint", still + 1, still, scale="teacher_variance") == pytest.approx(1e6)  # the floor of 1e-6
    with pytest.raises(ValueError, match="scale: teacher_variance of one sample is 0: use a batch of two or more"):
        losses.hint(torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 3, 1, 1, 1), scale="teacher_variance")
    teacher.requires_grad_(True)
    student.requires_grad_(True)
    losses.hint(student, teacher, scale="teacher_variance").backward()
    assert student.grad is not None and teacher.grad is None


# Time


def reversals() -> dict[str, tuple[bool, bool]]:
    """Of each loss on features: whether it is above zero between clips and their reversals, if one clip of the batch is
    reversed and if all are."""
    _, clip = maps(6, 6, 5, 4, 4, 4)
    one, every = clip.clone(), clip.flip(2)
    one[0] = clip[0].flip(1)
    found: dict[str, tuple[bool, bool]] = {}

    def tell(name: str, loss: object) -> None:
        at_rest = float(loss(clip, clip))  # type: ignore[operator]
        found[name] = tuple(abs(float(loss(other, clip)) - at_rest) > 1e-6 for other in (one, every))  # type: ignore

    for name, function in losses.FUNCTIONS.items():
        if loss_sections()[name].compares in LOGITS:
            continue
        fixed = FIXED.get(name, {})
        tell(name, lambda s, t, f=function, fixed=fixed: f(s, t, **fixed))
        if name in DISTRIBUTIONS:
            for cells in ((1, 2, 2), (2, 1, 1)):
                shown = f"{name}, cells {list(cells)}"
                tell(shown, lambda s, t, f=function, fixed=fixed, c=cells: f(s, t, cells=c, **fixed))
            tell(f"{name}, frames", lambda s, t, f=function, fixed=fixed: f(s, t, samples="frames", **fixed))
    halves = lambda f: [f, torch.nn.functional.avg_pool3d(f, 2) ** 2]  # noqa: E731
    tell("stage_cka", lambda s, t: losses.stage_cka(halves(s), halves(t)))
    torch.manual_seed(0)
    crd = losses.CRD(clips=6, student_channels=5, teacher_channels=5, negatives=4).double().eval()

    def contrast(s: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(0)
        return crd(s, t, torch.arange(6)).detach()

    tell("crd", contrast)
    return found


def test_which_losses_tell_a_clip_from_its_reversal_is_in_the_manual() -> None:
    found = reversals()
    for name in DISTRIBUTIONS:  # without cells in time, a distribution has no order of time
        if name != "mmd":  # which leaves out the pairs of equal places between the networks
            assert found[name] == found[f"{name}, cells [1, 2, 2]"] == (False, False)
        assert found[f"{name}, cells [2, 1, 1]"] == found[f"{name}, frames"] == (True, True)
    text = (REPO / "docs" / "method.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*) \| (yes|no) \| (yes|no) \|$", text, re.M)
    written = {name: (a == "yes", b == "yes") for names, a, b in rows for name in re.findall(r"`([^`]*)`", names)}
    assert written == found
