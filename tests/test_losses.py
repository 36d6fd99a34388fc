"""Losses against formulas written from the papers in float64 NumPy, and their behaviour at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagedkd import losses

FEATURE = {"hint": losses.hint, "gaussian_w2": losses.gaussian_w2, "sp": losses.sp}


def features(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def np_log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_the_mean_over_labelled_clips(smoothing: float) -> None:
    logits, labels = features(0, 6, 5), torch.tensor([0, -1, 3, 4, -1, 2])
    known = labels >= 0
    target = np.full((4, 5), smoothing / 5) + (1 - smoothing) * np.eye(5)[labels[known].numpy()]
    expected = -(target * np_log_softmax(logits[known].numpy())).sum(1).mean()
    assert losses.ce(logits, labels, smoothing=smoothing).item() == pytest.approx(expected, rel=1e-12)


def test_ce_without_labels_is_zero_with_zero_gradient() -> None:
    logits = features(0, 3, 4).requires_grad_()
    loss = losses.ce(logits, torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_hintons(temperature: float) -> None:
    student, teacher = features(1, 7, 9), features(2, 7, 9)
    p, q = (np_log_softmax(x.numpy() / temperature) for x in (teacher, student))
    expected = temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    assert losses.kd(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_gaussian_w2_is_the_closed_form(gamma: float) -> None:
    student, teacher = features(3, 4, 5, 2, 3, 3), features(4, 4, 5, 2, 3, 3)
    a, b = (x.numpy().reshape(4, 5, -1) for x in (student, teacher))
    means = ((a.mean(2) - b.mean(2)) ** 2).sum(1)
    deviations = ((np.sqrt(a.var(2) + 1e-5) - np.sqrt(b.var(2) + 1e-5)) ** 2).sum(1)
    expected = (gamma * means + deviations).mean()
    assert losses.gaussian_w2(student, teacher, gamma=gamma).item() == pytest.approx(expected, rel=1e-12)


def test_gaussian_w2_over_the_batch() -> None:
    student, teacher = features(3, 4, 5, 2, 1, 3), features(4, 4, 5, 2, 1, 3)
    a, b = (x.numpy().transpose(1, 0, 2, 3, 4).reshape(5, -1) for x in (student, teacher))
    expected = ((a.mean(1) - b.mean(1)) ** 2 + (np.sqrt(a.var(1) + 1e-5) - np.sqrt(b.var(1) + 1e-5)) ** 2).sum()
    assert losses.gaussian_w2(student, teacher, samples="batch").item() == pytest.approx(expected, rel=1e-12)


def test_sp_is_tung_and_moris() -> None:
    student, teacher = features(5, 6, 3, 2, 2, 2), features(6, 6, 8, 1, 4, 4)
    grams = [x.numpy().reshape(6, -1) @ x.numpy().reshape(6, -1).T for x in (student, teacher)]
    a, b = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
    assert losses.sp(student, teacher).item() == pytest.approx(((a - b) ** 2).sum() / 36, rel=1e-12)


def test_hint_is_the_mean_squared_error() -> None:
    student, teacher = features(7, 2, 3, 2, 2, 2), features(8, 2, 3, 2, 2, 2)
    expected = ((student - teacher).numpy() ** 2).mean()
    assert losses.hint(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", FEATURE)
def test_equal_features_have_no_loss(name: str) -> None:
    x = features(9, 3, 4, 2, 3, 3)
    assert FEATURE[name](x, x).item() == pytest.approx(0, abs=1e-15)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.5, 20))
def test_kd_ignores_constants_and_is_never_negative(seed: int, shift: float, temperature: float) -> None:
    student, teacher = features(seed, 3, 4), features(seed + 1, 3, 4)
    plain = losses.kd(student, teacher, temperature=temperature).item()
    assert losses.kd(student + shift, teacher - shift, temperature=temperature).item() == pytest.approx(plain, abs=1e-9)
    assert plain >= -1e-12 and losses.kd(student, student, temperature=temperature).item() == pytest.approx(
        0, abs=1e-12
    )


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_sp_ignores_scale_and_w2_is_symmetric(seed: int, scale: float) -> None:
    a, b = features(seed, 4, 3, 2, 2, 2), features(seed + 1, 4, 3, 2, 2, 2)
    assert losses.sp(a * scale, b).item() == pytest.approx(losses.sp(a, b).item(), abs=1e-9)
    assert losses.gaussian_w2(a, b).item() == pytest.approx(losses.gaussian_w2(b, a).item(), rel=1e-9)


@pytest.mark.parametrize("name", [*FEATURE, "kd"])
def test_gradients(name: str) -> None:
    if name == "kd":
        student, teacher = features(10, 3, 4).requires_grad_(), features(11, 3, 4)
        assert torch.autograd.gradcheck(lambda x: losses.kd(x, teacher), student)
        return
    student, teacher = features(10, 3, 2, 2, 2, 2).requires_grad_(), features(11, 3, 2, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda x: FEATURE[name](x, teacher), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*FEATURE, "kd", "ce"])
def test_half_precision_is_raised_and_autocast_is_off(name: str, dtype: torch.dtype) -> None:
    shape = (4, 6) if name in ("kd", "ce") else (4, 6, 2, 3, 3)
    student = features(12, *shape).to(dtype)
    other = torch.tensor([0, 1, -1, 5]) if name == "ce" else features(13, *shape).to(dtype)
    loss = getattr(losses, name)
    exact = loss(student.double(), other if name == "ce" else other.double()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, other)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(exact, rel=1e-5)
    assert loss(student.double(), other if name == "ce" else other.double()).dtype == torch.float64


@pytest.mark.parametrize("gap", [500.0, 5000.0])
def test_extreme_logits_are_finite(gap: float) -> None:
    student = torch.tensor([[gap, 0.0, -gap], [0.0, gap, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-gap, 0.0, gap], [gap, 0.0, 0.0]])
    for loss in (losses.kd(student, teacher, temperature=1.0), losses.ce(student, torch.tensor([2, 0]))):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", FEATURE)
@pytest.mark.parametrize("shape", [(1, 3, 2, 2, 2), (4, 3, 1, 1, 1), (4, 3, 2, 2, 2)])
def test_dead_channels_small_maps_and_single_clips_are_finite(name: str, shape: tuple[int, ...]) -> None:
    student = torch.zeros(shape, requires_grad=True)
    loss = FEATURE[name](student, features(14, *shape, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all()


def test_one_sample_has_no_variance_and_says_so() -> None:
    one = torch.zeros(1, 3, 1, 1, 1)
    with pytest.raises(ValueError, match="a batch of two or more"):
        losses.gaussian_w2(one, one)
    with pytest.raises(ValueError, match="samples: batch"):
        losses.gaussian_w2(torch.zeros(4, 3, 1, 1, 1), torch.zeros(4, 3, 1, 1, 1), samples="positions")


@pytest.mark.parametrize("name", ["hint", "gaussian_w2"])
def test_other_shapes_are_refused_with_both(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 1, 2, 2\).*\(2, 4, 1, 2, 2\)"):
        FEATURE[name](torch.zeros(2, 3, 1, 2, 2), torch.zeros(2, 4, 1, 2, 2))


@pytest.mark.parametrize("name", [*FEATURE, "kd"])
def test_the_teacher_gets_no_gradient(name: str) -> None:
    shape = (4, 6) if name == "kd" else (4, 6, 2, 3, 3)
    student, teacher = features(15, *shape).requires_grad_(), features(16, *shape).requires_grad_()
    getattr(losses, name)(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None


def test_pooling_to_the_common_grid() -> None:
    student, teacher = features(17, 2, 3, 4, 6, 2), features(18, 2, 5, 2, 3, 4)
    a, b = losses.pool_to_common(student, teacher)
    assert a.shape == (2, 3, 2, 3, 2) and b.shape == (2, 5, 2, 3, 2)
    expected = student.numpy().reshape(2, 3, 2, 2, 3, 2, 2).mean((3, 5))
    np.testing.assert_allclose(a.numpy(), expected, rtol=1e-12)
    same = losses.pool_to_common(student, student)
    assert same[0] is student and same[1] is student
