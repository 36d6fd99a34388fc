"""The losses of published methods against formulas written from their papers in float64 NumPy, and at their edges."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stagedkd import losses

LABELS = torch.tensor([0, 3, 2, 2, 1, 4])
LOGITS: dict[str, Callable[..., Tensor]] = {
    "kd": losses.kd,
    "dist": losses.dist,
    "logit_std": losses.logit_std,
    "dkd": lambda s, t, **k: losses.dkd(s, t, LABELS[: len(s)], **k),
}
FEATURES: dict[str, Callable[..., Tensor]] = {
    name: getattr(losses, name)
    for name in ("hint", "at", "gaussian_w2", "gaussian_kl", "mmd", "nst", "coral", "sp", "rkd", "pkt", "review")
}
FEATURES["sliced_w2"] = lambda s, t, **k: losses.sliced_w2(s, t, directions=DIRECTIONS.to(s.dtype), **k)
DIRECTIONS = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(9).normal(size=(50, 5))), dim=1)
TOLERANCE = {"dist": 1e-12, "mmd": 1e-12, "gaussian_kl": 1e-12, "rkd": 1e-12, "pkt": 1e-12}


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def maps(seed: int, batch: int = 6, channels: int = 5) -> Tensor:
    return drawn(seed, batch, channels, 2, 3, 3)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


# ---------------------------------------------------------------- against the papers


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (0.5, 2.0, 1.0)])
def test_dkd_is_the_papers(alpha: float, beta: float, temperature: float) -> None:
    """Zhao et al. 2022, equations 5 and 7: binary and non-target probabilities, each from its own softmax."""
    student, teacher = drawn(1, 6, 5), drawn(2, 6, 5)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for logits in (student, teacher):
        p = softmax(logits.numpy() / temperature)
        target = p[np.arange(6), LABELS.numpy()]
        others = np.stack([np.delete(row, c) for row, c in zip(p, LABELS.numpy(), strict=True)])
        parts.append((np.stack([target, 1 - target], 1), others / others.sum(1, keepdims=True)))
    (binary_s, others_s), (binary_t, others_t) = parts
    expected = temperature**2 * (alpha * kl(binary_t, binary_s) + beta * kl(others_t, others_s)).mean()
    found = losses.dkd(student, teacher, LABELS, alpha=alpha, beta=beta, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-10)


def test_dkd_with_its_own_weights_is_kd() -> None:
    """KD = TCKD + (1 - p_t) NCKD (equation 8): with one clip, beta = 1 - p_t of the teacher gives KD."""
    student, teacher = drawn(3, 1, 5), drawn(4, 1, 5)
    beta = 1 - softmax(teacher.numpy() / 4)[0, 0]
    mine = losses.dkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=float(beta), temperature=4.0)
    assert mine.item() == pytest.approx(losses.kd(student, teacher, temperature=4.0).item(), rel=1e-10)


def test_dkd_of_an_unlabelled_clip_takes_the_teachers_class() -> None:
    student, teacher = drawn(5, 4, 5), drawn(6, 4, 5)
    unlabelled = losses.dkd(student, teacher, torch.full((4,), -1))
    assert unlabelled.item() == losses.dkd(student, teacher, teacher.argmax(1)).item()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_the_papers(temperature: float) -> None:
    student, teacher = drawn(7, 6, 5), drawn(8, 6, 5)
    p, q = (softmax(x.numpy() / temperature) for x in (student, teacher))
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(6)])
    intra = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(5)])
    expected = temperature**2 * (2.0 * inter + 3.0 * intra)
    found = losses.dist(student, teacher, beta=2.0, gamma=3.0, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_logit_std_is_kd_of_standardised_logits() -> None:
    student, teacher = drawn(9, 6, 5), drawn(10, 6, 5)
    z = [
        (x.numpy() - x.numpy().mean(1, keepdims=True)) / (x.numpy().std(1, ddof=1, keepdims=True) + 1e-7)
        for x in (student, teacher)
    ]
    p, q = softmax(z[1] / 2), softmax(z[0] / 2)
    assert losses.logit_std(student, teacher).item() == pytest.approx(4 * kl(p, q).mean(), rel=1e-10)
    assert losses.logit_std(student, student * 5 + 3).item() == pytest.approx(
        0, abs=1e-12
    )  # scale and shift do not count


def test_at_is_the_authors() -> None:
    student, teacher = maps(11, channels=4), maps(12)
    a, b = ((x.numpy() ** 2).mean(1).reshape(6, -1) for x in (student, teacher))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    assert losses.at(student, teacher).item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-10)


def test_gaussian_kl_is_the_closed_form() -> None:
    student, teacher = maps(13), maps(14)
    a, b = (x.numpy().reshape(6, 5, -1) for x in (student, teacher))
    va, vb, shift = a.var(2), b.var(2), (a.mean(2) - b.mean(2)) ** 2
    expected = (0.5 * (np.log(va / vb) + (vb + shift) / va - 1)).sum(1).mean()
    assert losses.gaussian_kl(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    dead = teacher.clone()
    dead[:, 0] = 0
    assert losses.gaussian_kl(student, dead).isfinite()


@pytest.mark.parametrize("samples", ["positions", "batch"])
def test_mmd_is_the_paired_u_statistic(samples: str) -> None:
    student, teacher = maps(15), maps(16)
    if samples == "positions":
        rows = [(a.reshape(5, -1).T, b.reshape(5, -1).T) for a, b in zip(student.numpy(), teacher.numpy(), strict=True)]
    else:
        rows = [(student.numpy().mean((2, 3, 4)), teacher.numpy().mean((2, 3, 4)))]

    def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ((x[:, None] - y[None]) ** 2).sum(-1)

    off = [~np.eye(len(a), dtype=bool) for a, _ in rows]
    pairs = [(squared(a, a)[o], squared(b, b)[o], squared(a, b)[o]) for (a, b), o in zip(rows, off, strict=True)]
    scale = np.mean([np.mean([p[k].mean() for p in pairs]) for k in range(3)])

    def kernel(d: np.ndarray) -> np.ndarray:
        return sum(np.exp(-d / (w * scale)) for w in (0.5, 1.0, 2.0))

    expected = np.mean([kernel(s).mean() + kernel(t).mean() - 2 * kernel(c).mean() for s, t, c in pairs])
    assert losses.mmd(student, teacher, samples=samples).item() == pytest.approx(expected, rel=1e-9)  # pyright: ignore


def test_nst_is_the_papers() -> None:
    student, teacher = maps(17, channels=4), maps(18)
    a, b = (x.numpy().reshape(6, x.shape[1], -1) for x in (student, teacher))
    a, b = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (a, b))
    expected = np.mean(
        [
            ((t @ t.T) ** 2).mean() + ((s @ s.T) ** 2).mean() - 2 * ((s @ t.T) ** 2).mean()
            for s, t in zip(a, b, strict=True)
        ]
    )
    assert losses.nst(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_coral_is_the_papers_with_a_mean_term() -> None:
    student, teacher = maps(19), maps(20)
    a, b = (x.numpy().transpose(1, 0, 2, 3, 4).reshape(5, -1) for x in (student, teacher))
    expected = ((np.cov(a) - np.cov(b)) ** 2).sum() / 100 + ((a.mean(1) - b.mean(1)) ** 2).mean()
    assert losses.coral(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    few = [drawn(s, 3, 8, 1, 1, 1) for s in (21, 22)]  # 3 samples of 8 channels: shrunk
    a, b = (np.cov(x.numpy()[:, :, 0, 0, 0].T) for x in few)
    a, b = (0.9 * x + 0.1 * np.trace(x) / 8 * np.eye(8) for x in (a, b))
    means = ((few[0].numpy().mean(0) - few[1].numpy().mean(0)) ** 2).mean()
    assert losses.coral(*few).item() == pytest.approx(((a - b) ** 2).sum() / 256 + means, rel=1e-10)


def test_sliced_w2_sorts_projections() -> None:
    student, teacher = maps(23), maps(24)
    a, b = (x.numpy().reshape(6, 5, -1).transpose(0, 2, 1) @ DIRECTIONS.numpy().T for x in (student, teacher))
    expected = ((np.sort(a, 1) - np.sort(b, 1)) ** 2).mean()
    assert losses.sliced_w2(student, teacher, directions=DIRECTIONS).item() == pytest.approx(expected, rel=1e-10)
    shifted = losses.sliced_w2(student, student + 1.0, directions=DIRECTIONS)
    assert shifted.item() == pytest.approx(float((DIRECTIONS.sum(1) ** 2).mean()), rel=1e-9)


def huber(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, 0.5 * x**2, np.abs(x) - 0.5)


def test_rkd_is_the_papers() -> None:
    student, teacher = maps(25, channels=4), maps(26)
    relations: list[tuple[np.ndarray, np.ndarray]] = []
    for x in (student, teacher):
        f = x.numpy().reshape(6, -1)
        d = np.linalg.norm(f[:, None] - f[None], axis=2)
        angles = np.zeros((6, 6, 6))
        for i in range(6):
            e = [(f[j] - f[i]) / max(d[i, j], 1e-12) for j in range(6)]
            angles[i] = [[e[j] @ e[k] for k in range(6)] for j in range(6)]
        relations.append((d / d[d > 0].mean(), angles))
    distance = huber(relations[0][0] - relations[1][0]).mean()
    angle = huber(relations[0][1] - relations[1][1]).mean()
    assert losses.rkd(student, teacher).item() == pytest.approx(distance + 2 * angle, rel=1e-8)


def test_pkt_is_the_authors() -> None:
    student, teacher = maps(27, channels=4), maps(28)
    p = []
    for x in (student, teacher):
        f = x.numpy().reshape(6, -1)
        f = f / np.linalg.norm(f, axis=1, keepdims=True)
        s = (f @ f.T + 1) / 2
        p.append(s / s.sum(1, keepdims=True))
    expected = (p[1] * np.log((p[1] + 1e-7) / (p[0] + 1e-7))).mean()
    assert losses.pkt(student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("shape", "grids"),
    [
        ((4, 8, 8), [(4, 4, 4), (2, 2, 2), (1, 1, 1)]),
        ((2, 8, 4), [(2, 4, 4), (2, 2, 2), (1, 1, 1)]),  # shorter axes keep their length
        ((1, 2, 2), [(1, 1, 1)]),  # 4 and 2 would leave it as it is, and take no weight
        ((1, 1, 1), []),
    ],
)
def test_review_is_the_papers_hcl(shape: tuple[int, ...], grids: list[tuple[int, ...]]) -> None:
    student, teacher = drawn(60, 3, 4, *shape), drawn(61, 3, 4, *shape)
    found = losses.review(student, teacher).item()
    errors = [((student - teacher).numpy() ** 2).mean()]
    for grid in grids:
        ways = [x for g, s in zip(grid, shape, strict=True) for x in (g, s // g)]
        a, b = (x.numpy().reshape(3, 4, *ways).mean((3, 5, 7)) for x in (student, teacher))
        errors.append(((a - b) ** 2).mean())
    weights = [1, 1 / 2, 1 / 4, 1 / 8][: len(errors)]
    assert found == pytest.approx(np.average(errors, weights=weights), rel=1e-12)
    assert losses.review(student, teacher, levels=()).item() == pytest.approx(errors[0], rel=1e-12)


def test_review_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(6, 4, 2, 3, 3\).*\(6, 5, 2, 3, 3\).*project"):
        losses.review(maps(62, channels=4), maps(63))


def test_cka_golden_numbers() -> None:
    """Published check values: linear .55761, debiased .51346."""
    dice = np.random.RandomState(1337)
    x = dice.randn(100, 10)
    y = dice.randn(100, 10) + x
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert losses.cka(x, y, debiased=False).item() == pytest.approx(0.55761, abs=5e-6)
    assert losses.cka(x, y).item() == pytest.approx(0.51346, abs=5e-6)
    turn = torch.linalg.qr(drawn(29, 10, 10)).Q
    assert losses.cka(x, 3 * x @ turn + 1).item() == pytest.approx(1, abs=1e-9)
    wide = drawn(30, 32, 512), drawn(31, 32, 512)
    assert losses.cka(*wide, debiased=False) > 0.9 and abs(losses.cka(*wide)) < 0.05  # why it is debiased


def np_cka(x: np.ndarray, y: np.ndarray, debiased: bool) -> float:
    """From the definitions: tr(KHLH) of Gretton et al. 2005, and equation 5 of Song et al. 2012."""
    n = len(x)
    centre, one = np.eye(n) - 1 / n, np.ones(n)

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        if not debiased:
            return np.trace(k @ centre @ m @ centre)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


STUDENT_SHAPES = [(3, 4, 4, 4), (6, 2, 2, 4), (8, 2, 1, 1)]
TEACHER_SHAPES = [(4, 4, 6, 6), (4, 4, 2, 2), (9, 1, 2, 2)]


def stages(
    seed: int, shapes: list[tuple[int, ...]], batch: int = 8, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return [drawn(seed + i, batch, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def halved(x: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    ways = [w for g, s in zip(grid, x.shape[2:], strict=True) for w in (g, s // g)]
    return x.reshape(*x.shape[:2], *ways).mean((3, 5, 7)).reshape(len(x), -1)


@pytest.mark.parametrize("debiased", [True, False])
def test_stage_cka_is_the_distance_of_the_matrices(debiased: bool) -> None:
    """All nine entries, the diagonals too, each from maps halved by hand to the smaller grid."""
    matrices = np.zeros((2, 3, 3))
    sides = stages(70, STUDENT_SHAPES), stages(80, TEACHER_SHAPES)
    for side, feats in enumerate(sides):
        for i, a in enumerate(feats):
            for j, b in enumerate(feats):
                grid = tuple(min(p, q) for p, q in zip(a.shape[2:], b.shape[2:], strict=True))
                matrices[side, i, j] = np_cka(halved(a.numpy(), grid), halved(b.numpy(), grid), debiased)
    expected = ((matrices[0] - matrices[1]) ** 2).sum() / 9
    assert expected > 1e-3
    assert losses.stage_cka(*sides, debiased=debiased).item() == pytest.approx(expected, rel=1e-9)


def test_stage_cka_sees_neither_scale_nor_rotation_and_is_zero_for_equals() -> None:
    feats = stages(90, STUDENT_SHAPES)
    assert losses.stage_cka(feats, [f.clone() for f in feats]).item() == 0
    turned = []
    for i, feat in enumerate(feats):  # another rotation of the channels and another scale for each substage
        turn = torch.linalg.qr(drawn(95 + i, feat.shape[1], feat.shape[1])).Q
        turned.append(torch.einsum("bcthw,cd->bdthw", feat, turn) * 10.0**i + 3)
    assert losses.stage_cka(turned, feats).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("debiased", [True, False])
def test_stage_cka_gradients(debiased: bool) -> None:
    shapes = [(2, 1, 2, 2), (3, 1, 2, 1), (2, 1, 1, 1)]
    student = [f.requires_grad_() for f in stages(100, shapes, batch=5)]
    teacher = [f.requires_grad_() for f in stages(110, shapes, batch=5)]
    losses.stage_cka(student, teacher, debiased=debiased).backward()
    assert all(f.grad is None for f in teacher) and all(f.grad is not None and f.grad.any() for f in student)

    def loss(*feats: Tensor) -> Tensor:
        return losses.stage_cka(feats, [f.detach() for f in teacher], debiased=debiased)

    assert torch.autograd.gradcheck(loss, tuple(f.detach().requires_grad_() for f in student))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_stage_cka_with_dead_substages_and_large_and_small_features_is_finite(scale: float) -> None:
    shapes = [(3, 2, 2, 2), (4, 1, 1, 1), (4, 1, 1, 1)]
    student = [f * scale for f in stages(120, shapes, 4, torch.float32)]
    student[0][:, 0] = 0
    student[1] = torch.zeros_like(student[1])
    teacher = stages(130, shapes, 4, torch.float32)
    for feat in student:
        feat.requires_grad_()
    loss = losses.stage_cka(student, teacher)
    loss.backward()
    assert loss.isfinite() and all(f.grad is not None and f.grad.isfinite().all() for f in student)
    assert losses.stage_cka(teacher, student).isfinite()
    alive = np_cka(*(halved(f.detach().double().numpy() / scale, (1, 1, 1)) for f in student[::2]), debiased=True)
    wanted = [
        np_cka(*(halved(teacher[k].double().numpy(), (1, 1, 1)) for k in ks), True) for ks in ((0, 1), (1, 2), (0, 2))
    ]
    expected = 2 * (wanted[0] ** 2 + wanted[1] ** 2 + (alive - wanted[2]) ** 2) / 9  # the dead one is similar to none
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stage_cka_raises_half_inside_the_sequences(dtype: torch.dtype) -> None:
    student, teacher = (
        [f.to(dtype) for f in stages(s, shapes, 8)] for s, shapes in ((140, STUDENT_SHAPES), (150, TEACHER_SHAPES))
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = losses.stage_cka(student, tuple(teacher))
    exact = losses.stage_cka([f.double() for f in student], [f.double() for f in teacher])
    assert half.dtype == torch.float32 and exact.dtype == torch.float64
    assert half.item() == pytest.approx(exact.item(), rel=1e-4)


def test_stage_cka_refuses_what_it_cannot_relate() -> None:
    one, two = stages(160, STUDENT_SHAPES), stages(170, TEACHER_SHAPES)
    with pytest.raises(ValueError, match="student has 3 substages, teacher 2"):
        losses.stage_cka(one, two[:2])
    with pytest.raises(ValueError, match="two or more"):
        losses.stage_cka(one[:1], two[:1])
    with pytest.raises(ValueError, match="student has 8 clips, teacher 7"):
        losses.stage_cka(one, [f[:7] for f in two])
    for clips, debiased in ((3, True), (1, True), (1, False)):
        with pytest.raises(ValueError, match=f"cka of {clips} clips: use a batch of {4 if debiased else 2} or more"):
            losses.stage_cka([f[:clips] for f in one], [f[:clips] for f in two], debiased=debiased)
    assert losses.stage_cka([f[:4] for f in one], [f[:4] for f in two]).isfinite()
    assert losses.stage_cka([f[:2] for f in one], [f[:2] for f in two], debiased=False).isfinite()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_cka_in_float32_does_not_see_the_scale(scale: float) -> None:
    x = drawn(180, 32, 64, dtype=torch.float32)
    y = x[:, :40] + drawn(181, 32, 40, dtype=torch.float32)
    for debiased in (True, False):
        assert losses.cka(x * scale, y * scale, debiased=debiased).item() == pytest.approx(
            np_cka(x.double().numpy() - x.double().numpy().mean(0), y.double().numpy(), debiased), rel=1e-4
        )


# ---------------------------------------------------------------- what all of them keep


def pair(name: str, dtype: torch.dtype = torch.float64, batch: int = 6) -> tuple[Tensor, Tensor]:
    shape = (batch, 5) if name in LOGITS else (batch, 5, 2, 3, 3)
    return drawn(40, *shape, dtype=dtype), drawn(41, *shape, dtype=dtype)


EVERY: dict[str, Callable[..., Tensor]] = LOGITS | FEATURES


@pytest.mark.parametrize("name", EVERY)
def test_equal_inputs_cost_nothing(name: str) -> None:
    student, _ = pair(name)
    assert EVERY[name](student, student.clone()).item() == pytest.approx(0, abs=TOLERANCE.get(name, 1e-10))


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_those_of_the_values_and_the_teacher_has_none(name: str) -> None:
    """gradcheck in double; what is detached by definition (the scale of mmd) is not asked for."""
    student, teacher = (x.requires_grad_() for x in pair(name, batch=3))
    EVERY[name](student, teacher).backward()
    assert teacher.grad is None and student.grad is not None and student.grad.abs().sum() > 0
    if name != "mmd":
        assert torch.autograd.gradcheck(lambda s: EVERY[name](s, teacher.detach()), student.detach().requires_grad_())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_raised_and_autocast_is_off(name: str, dtype: torch.dtype) -> None:
    student, teacher = pair(name, torch.float32)
    half = EVERY[name](student.to(dtype), teacher.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        inside = EVERY[name](student.to(dtype), teacher.to(dtype))
    assert half.dtype == inside.dtype == torch.float32 and half.item() == inside.item()
    exact = EVERY[name](student.to(dtype).double(), teacher.to(dtype).double())
    assert exact.dtype == torch.float64 and half.item() == pytest.approx(exact.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits_are_finite(name: str) -> None:
    student, teacher = torch.zeros(3, 5), torch.zeros(3, 5)
    student[:, 0], teacher[:, 1] = 500, 500
    student.requires_grad_()
    loss = LOGITS[name](student, teacher)
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("kind", ["dead channels", "1x1x1", "one clip", "one clip of 1x1x1"])
def test_odd_maps_are_finite_or_refused_with_a_reason(name: str, kind: str) -> None:
    batch = 1 if kind.startswith("one clip") else 4
    grid = (1, 1, 1) if "1x1x1" in kind else (2, 3, 3)
    student, teacher = drawn(50, batch, 5, *grid), drawn(51, batch, 5, *grid)
    if kind == "dead channels":
        student[:, 0], teacher[:, :2] = 0, 0
    student.requires_grad_()
    try:
        loss = FEATURES[name](student, teacher)
    except ValueError as error:
        assert kind.startswith("one clip") and len(str(error)) > 20
        return
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in losses.__all__ if not n.startswith(("pool_to", "gaussians", "Gaussians"))])
def test_every_loss_names_its_paper_and_its_shapes(name: str) -> None:
    loss: Any = getattr(losses, name)
    assert loss.__doc__ and (
        any(f"{year}" in loss.__doc__ for year in range(2010, 2026)) or "our formulation" in loss.__doc__
    )
    assert all(p.kind is p.KEYWORD_ONLY or "_" in p.name for p in inspect.signature(loss).parameters.values())
