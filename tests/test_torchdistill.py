"""Our losses against torchdistill's on the same inputs; where the two differ, the difference itself is asserted.

Its losses take dictionaries of what modules gave. Its maps are (B, C, H, W): ours with T = 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdistill.losses import mid_level
from torchdistill.losses.registry import get_mid_level_loss

from stagedkd import losses

LABELS = torch.tensor([0, 3, 2, 2, 1, 4])
LOGITS = ("net", "output", "net", "output")
AT_PAIR = {"pair": {side: {"path": "net", "io": "output"} for side in ("student", "teacher")}}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def logits() -> tuple[Tensor, Tensor]:
    return 3 * drawn(1, 6, 5), 3 * drawn(2, 6, 5)


def maps(channels: int = 5, side: int = 8) -> tuple[Tensor, Tensor]:
    return drawn(3, 6, channels, side, side), drawn(4, 6, 5, side, side)


def theirs(loss: nn.Module, student: Any, teacher: Any, labels: Tensor | None = None) -> float:
    return loss({"net": {"output": student}}, {"net": {"output": teacher}}, labels).item()


def ours(loss: Any, student: Tensor, teacher: Tensor, **params: Any) -> float:
    return loss(student[:, :, None], teacher[:, :, None], **params).item()


# ---------------------------------------------------------------- the same


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_kd_with_ce(temperature: float, smoothing: float) -> None:
    student, teacher = logits()
    loss = mid_level.KDLoss(*LOGITS, temperature=temperature, alpha=0.3, label_smoothing=smoothing)
    mine = 0.3 * losses.ce(student, LABELS, smoothing=smoothing) + 0.7 * losses.kd(
        student, teacher, temperature=temperature
    )
    assert mine.item() == pytest.approx(theirs(loss, student, teacher, LABELS), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_logit_std_with_ce(temperature: float) -> None:
    student, teacher = logits()
    loss = mid_level.LogitStdKDLoss(*LOGITS, temperature=temperature, alpha=0.5, beta=9.0)
    mine = 0.5 * losses.ce(student, LABELS) + 9 * losses.logit_std(student, teacher, temperature=temperature)
    assert mine.item() == pytest.approx(theirs(loss, student, teacher, LABELS), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature: float) -> None:
    student, teacher = logits()
    loss = mid_level.DISTLoss(*LOGITS, beta=2.0, gamma=3.0, tau=temperature)
    mine = losses.dist(student, teacher, beta=2.0, gamma=3.0, temperature=temperature)
    assert mine.item() == pytest.approx(theirs(loss, student, teacher), rel=1e-12)


def test_label_smoothing() -> None:
    student, teacher = logits()
    source = {"input": {"is_from_teacher": False, "module_path": "net", "io": "output"}, "target": {"uses_label": True}}
    loss = get_mid_level_loss(
        {"key": "CrossEntropyLoss", "kwargs": {"label_smoothing": 0.2}}, {"key": "SimpleLossWrapper", "kwargs": source}
    )
    expected = theirs(loss, student, teacher, LABELS)
    assert losses.ce(student, LABELS, smoothing=0.2).item() == pytest.approx(expected, rel=1e-12)


def test_hint() -> None:
    student, teacher = maps()
    source = {
        "input": {"is_from_teacher": False, "module_path": "net", "io": "output"},
        "target": {"is_from_teacher": True, "module_path": "net", "io": "output"},
    }
    loss = get_mid_level_loss({"key": "MSELoss", "kwargs": {}}, {"key": "SimpleLossWrapper", "kwargs": source})
    assert ours(losses.hint, student, teacher) == pytest.approx(theirs(loss, student, teacher), rel=1e-12)


def test_at_as_in_the_authors_code() -> None:
    student, teacher = maps(channels=3)
    loss = mid_level.ATLoss(AT_PAIR, mode="code")
    assert ours(losses.at, student, teacher) == pytest.approx(theirs(loss, student, teacher), rel=1e-12)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_review_on_square_maps(side: int) -> None:
    student, teacher = maps(side=side)
    loss = mid_level.HierarchicalContextLoss(*LOGITS)
    assert ours(losses.review, student, teacher) == pytest.approx(theirs(loss, (student, None), teacher), rel=1e-12)
    two = mid_level.HierarchicalContextLoss(*LOGITS, output_sizes=[3, 1])
    found = ours(losses.review, student, teacher, levels=(3, 1))
    assert found == pytest.approx(theirs(two, (student, None), teacher), rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 2.0), (25.0, 0.0), (0.0, 50.0)])
def test_rkd(alpha: float, beta: float) -> None:
    student, teacher = maps(channels=3)
    loss = mid_level.RKDLoss("net", "net", dist_factor=alpha, angle_factor=beta, reduction="mean")
    found = ours(losses.rkd, student, teacher, alpha=alpha, beta=beta)
    assert found == pytest.approx(theirs(loss, student, teacher), rel=1e-9)


def test_pkt() -> None:
    student, teacher = maps(channels=3)
    loss = mid_level.PKTLoss(*LOGITS)
    # one adds 1e-7 to the norm, the other takes it as a floor
    assert ours(losses.pkt, student, teacher) == pytest.approx(
        theirs(loss, student.flatten(1), teacher.flatten(1)), rel=1e-6
    )


class CrdPair:
    """Our CRD and torchdistill's with the same memories; its embeddings stand outside of it."""

    def __init__(self, clips: int = 9, negatives: int = 4) -> None:
        torch.manual_seed(0)
        self.ours = losses.CRD(
            clips=clips, student_channels=3, teacher_channels=5, embedding=6, negatives=negatives
        ).double()
        # eps = 0: it only keeps from a division by zero, which log space has no need of
        self.theirs = mid_level.CRDLoss("net", "empty", "net", 6, clips, negatives, clips, eps=0.0).double()
        self.theirs.memory_v1.copy_(self.ours.student_memory)
        self.theirs.memory_v2.copy_(self.ours.teacher_memory)
        self.theirs.params[1] = 0.07  # it was rounded to float32

    def embedded(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.ours.student_embedding, self.ours.teacher_embedding
        a, b = (F.normalize(layer(x.mean((2, 3)))) for layer, x in zip(layers, (student, teacher), strict=True))
        return a, b

    def call_theirs(self, student: Tensor, teacher: Tensor, numbers: Tensor, chosen: Tensor | None) -> Tensor:
        a, b = self.embedded(student, teacher)
        extra = {"pos_idx": numbers} | ({} if chosen is None else {"contrast_idx": chosen})
        return self.theirs({"net": {"output": a}, "empty": {"input": extra}}, {"net": {"output": b}})


def test_crd_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    both = CrdPair()
    for step, numbers in enumerate(torch.tensor([[0, 1, 2], [3, 4, 0], [0, 8, 3]])):
        student, teacher = drawn(20 + step, 3, 3, 4, 4).requires_grad_(), drawn(30 + step, 3, 5, 2, 2)
        chosen = both.ours.draw(numbers)
        monkeypatch.setattr(both.ours, "draw", lambda _, chosen=chosen: chosen)
        mine = both.ours(student[:, :, None], teacher[:, :, None], numbers)
        monkeypatch.undo()
        other = both.call_theirs(student, teacher, numbers, chosen)
        assert mine.item() == pytest.approx(other.item(), rel=1e-10)
        gradients = [torch.autograd.grad(x, (student, *both.ours.parameters())) for x in (mine, other.sum())]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(both.ours.student_memory, both.theirs.memory_v1, rtol=1e-10, atol=0)
        torch.testing.assert_close(both.ours.teacher_memory, both.theirs.memory_v2, rtol=1e-10, atol=0)


# ---------------------------------------------------------------- not the same


def test_kd_and_logit_std_without_labels_lose_the_square_of_the_temperature() -> None:
    """torchdistill leaves out temperature^2, and beta with it, where it has no cross-entropy to add."""
    student, teacher = logits()
    for name, mine in (("KDLoss", losses.kd), ("LogitStdKDLoss", losses.logit_std)):
        loss = getattr(mid_level, name)(*LOGITS, temperature=4.0, alpha=0.0, beta=7.0)
        assert mine(student, teacher, temperature=4.0).item() == pytest.approx(
            16 * theirs(loss, student, teacher), rel=1e-12
        )


def test_the_default_reduction_of_kl_div_loss_is_n_times_too_small() -> None:
    """`mean`, KLDivLoss' default, divides by the classes too; torchdistill's own default is the right `batchmean`."""
    student, teacher = logits()
    loss = mid_level.KDLoss(*LOGITS, temperature=4.0, alpha=1e-12, beta=1.0, reduction="mean")
    found = losses.kd(student, teacher, temperature=4.0).item()
    with pytest.warns(UserWarning, match="batchmean"):  # torch says so too
        assert found == pytest.approx(5 * theirs(loss, student, teacher, LABELS), rel=1e-9)


def test_at_in_its_paper_mode_sums_norms() -> None:
    """Equation 2 of the paper as torchdistill reads it: the norm of each clip, not its square, mean over the batch."""
    student, teacher = maps(channels=3)
    a, b = (F.normalize(x.square().sum(1).flatten(1)) for x in (student, teacher))
    norms = (a - b).norm(dim=1)
    assert theirs(mid_level.ATLoss(AT_PAIR, mode="paper"), student, teacher) == pytest.approx(norms.mean().item())
    assert 64 * ours(losses.at, student, teacher) == pytest.approx(norms.square().mean().item(), rel=1e-12)


def test_sp_is_normalised_by_the_wrong_norm() -> None:
    """torchdistill passes 1 as F.normalize's second argument, which is p: rows have L1 norm 1, the paper's have L2."""
    student, teacher = maps(channels=3)
    found = theirs(mid_level.SPKDLoss("net", "net", reduction="batchmean"), student, teacher)
    for order, value in ((1, found), (2, ours(losses.sp, student, teacher))):
        grams = [x.flatten(1).numpy() @ x.flatten(1).numpy().T for x in (student, teacher)]
        a, b = (g / np.linalg.norm(g, ord=order, axis=1, keepdims=True) for g in grams)
        assert value == pytest.approx(((a - b) ** 2).sum() / 36, rel=1e-10)
    assert found < 0.9 * ours(losses.sp, student, teacher)


def test_cckd_leaves_the_norm_unsquared() -> None:
    """Equation 5 of Peng et al. 2019 is ||C_s - C_t||^2 / B^2. We have no loss of this name."""
    student, teacher = logits()
    loss = mid_level.CCKDLoss("net", "net", {"type": "bilinear"}, reduction="batchmean")
    squared = ((student @ student.T - teacher @ teacher.T).numpy() ** 2).sum()
    assert theirs(loss, student, teacher) == pytest.approx(math.sqrt(squared) / 36, rel=1e-12)


def test_review_on_other_maps_goes_by_the_height() -> None:
    """torchdistill, as the authors, skips levels by the height alone: ours still averages the longer width."""
    student, teacher = drawn(40, 6, 5, 2, 8), drawn(41, 6, 5, 2, 8)
    squared = [(F.adaptive_avg_pool2d(student - teacher, grid) ** 2).mean().item() for grid in ((2, 8), (1, 1))]
    found = theirs(mid_level.HierarchicalContextLoss(*LOGITS), (student, None), teacher)
    assert found == pytest.approx(np.average(squared, weights=[1, 0.5]), rel=1e-12)
    grids = ((2, 8), (2, 4), (2, 2), (1, 1))
    squared = [(F.adaptive_avg_pool2d(student - teacher, grid) ** 2).mean().item() for grid in grids]
    assert ours(losses.review, student, teacher) == pytest.approx(
        np.average(squared, weights=[1, 0.5, 0.25, 0.125]), rel=1e-12
    )


def test_crd_cannot_draw_its_own_negatives() -> None:
    """torchdistill stores `probs` and reads `prob`: the negatives must come from the data set's sampler."""
    both = CrdPair()
    with pytest.raises(AttributeError, match="prob"):
        both.call_theirs(drawn(50, 3, 3, 4, 4), drawn(51, 3, 5, 2, 2), torch.tensor([0, 1, 2]), None)


def test_dist_of_one_clip_has_an_intra_part() -> None:
    """The correlation of columns of length one is 0 in torchdistill: a constant gamma, without gradient, on the loss."""
    student, teacher = (x[:1] for x in logits())
    found = theirs(mid_level.DISTLoss(*LOGITS, gamma=3.0), student, teacher)
    assert losses.dist(student, teacher, gamma=3.0).item() == pytest.approx(found - 3, rel=1e-12)


def test_teachers_get_a_gradient() -> None:
    """torchdistill leaves it to the caller to keep gradients from the teacher; ours never has one."""
    student, teacher = maps()
    teacher.requires_grad_()
    mid_level.HierarchicalContextLoss(*LOGITS)(
        {"net": {"output": (student, None)}}, {"net": {"output": teacher}}
    ).backward()
    assert teacher.grad is not None and teacher.grad.any()
    assert not losses.review(student[:, :, None], teacher[:, :, None]).requires_grad
