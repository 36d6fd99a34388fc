"""Losses on logits and on labels that may be wrong, against formulas written from the papers in float64 NumPy loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stagedkd import losses

LABELS = torch.tensor([0, 2, -1, 4, 1, -1])
SCALES = ((1, 1, 1), (1, 2, 2), (2, 1, 1))


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=shape)).to(dtype)


def softmax(row: np.ndarray, temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((z - top) / temperature) for z in row]
    return [e / sum(exps) for e in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def known(logits: Tensor) -> list[tuple[np.ndarray, int]]:
    return [(row, y) for row, y in zip(logits.numpy(), LABELS.tolist(), strict=True) if y >= 0]


# ---------------------------------------------------------------- labels that may be wrong


@pytest.mark.parametrize("q", [0.05, 0.7, 1.0])
def test_gce_is_the_papers(q: float) -> None:
    logits = drawn(0, 6, 5)
    expected = np.mean([(1 - softmax(row)[y] ** q) / q for row, y in known(logits)])
    assert losses.gce(logits, LABELS, q=q).item() == pytest.approx(expected, rel=1e-12)


def test_gce_lies_between_cross_entropy_and_absolute_error() -> None:
    logits = drawn(1, 6, 5)
    assert losses.gce(logits, LABELS, q=1e-9).item() == pytest.approx(losses.ce(logits, LABELS).item(), rel=1e-7)
    absolute = np.mean([sum(abs(p - (c == y)) for c, p in enumerate(softmax(row))) for row, y in known(logits)])
    assert losses.gce(logits, LABELS, q=1.0).item() == pytest.approx(absolute / 2, rel=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "log_zero"), [(0.1, 1.0, -4.0), (6.0, 0.1, -9.0)])
def test_sce_is_the_papers(alpha: float, beta: float, log_zero: float) -> None:
    logits, rows = drawn(2, 6, 5), list[float]()
    for row, y in known(logits):
        p = softmax(row)
        reverse = -sum(p[c] * (0.0 if c == y else log_zero) for c in range(5))
        rows.append(-alpha * math.log(p[y]) + beta * reverse)
    found = losses.sce(logits, LABELS, alpha=alpha, beta=beta, log_zero=log_zero)
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-12)


def np_elr(
    memory: np.ndarray, logits: Tensor, rows: list[int], labels: list[int], strength: float, momentum: float
) -> float:
    """One step of ELR; updates the memory. A row that occurs twice is remembered as it was first said."""
    terms, new = list[float](), dict[int, np.ndarray]()
    for z, row, y in zip(logits.numpy(), rows, labels, strict=True):
        if y < 0:
            continue
        p = np.clip(softmax(z), 1e-4, 1 - 1e-4)
        t = momentum * memory[row] + (1 - momentum) * p / p.sum()
        new.setdefault(row, t)
        terms.append(-math.log(softmax(z)[y]) + strength * math.log(1 - float(p @ t)))
    for row, t in new.items():
        memory[row] = t
    return float(np.mean(terms))


def test_elr_is_the_papers_over_several_steps() -> None:
    module, memory = losses.ELR(clips=9, classes=5).double(), np.zeros((9, 5))
    for step, rows in enumerate(([0, 3, 8, 5, 1, 2], [3, 3, 4, 0, 7, 8], [8, 1, 0, 3, 5, 6])):
        logits = drawn(10 + step, 6, 5)
        expected = np_elr(memory, logits, rows, LABELS.tolist(), 3.0, 0.7)
        assert module(logits, LABELS, torch.tensor(rows)).item() == pytest.approx(expected, rel=1e-12), step
        np.testing.assert_allclose(module.targets.numpy(), memory, rtol=1e-12)


def test_elr_goes_on_from_a_state_dict_with_the_same_bits_and_writes_nothing_in_eval() -> None:
    one, rows = losses.ELR(clips=6, classes=5), torch.arange(6)
    one(drawn(0, 6, 5, dtype=torch.float32), LABELS, rows)
    other = losses.ELR(clips=6, classes=5)
    other.load_state_dict(one.state_dict())
    logits = drawn(1, 6, 5, dtype=torch.float32)
    assert torch.equal(one(logits, LABELS, rows), other(logits, LABELS, rows))
    assert torch.equal(one.targets, other.targets) and one.targets[LABELS >= 0].any() and not one.targets[2].any()
    before = one.targets.clone()
    one.eval()(drawn(2, 6, 5, dtype=torch.float32), LABELS, rows)
    assert torch.equal(before, one.targets)


def test_elr_refuses_a_row_out_of_range() -> None:
    with pytest.raises(IndexError, match="out of"):
        losses.ELR(clips=4, classes=5)(drawn(0, 2, 5), LABELS[:2], torch.tensor([0, 9]))


def test_mean_teacher_is_the_squared_error_of_probabilities() -> None:
    strong, average = drawn(3, 4, 5), drawn(4, 4, 5)
    rows = [
        np.mean([(a - b) ** 2 for a, b in zip(softmax(x), softmax(y), strict=True)])
        for x, y in zip(strong.numpy(), average.numpy(), strict=True)
    ]
    assert losses.mean_teacher(strong, average).item() == pytest.approx(np.mean(rows), rel=1e-12)


# ---------------------------------------------------------------- with the teacher's logits


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_wttm_is_the_papers(temperature: float) -> None:
    student, teacher, rows = drawn(5, 6, 5), drawn(6, 6, 5), list[float]()
    for z, y in zip(student.numpy(), teacher.numpy(), strict=True):
        powers = [p ** (1 / temperature) for p in softmax(y)]
        rows.append(sum(powers) * kl([p / sum(powers) for p in powers], softmax(z)))
    assert losses.wttm(student, teacher, temperature=temperature).item() == pytest.approx(np.mean(rows), rel=1e-12)


def test_wttm_at_temperature_one_is_plain_kd() -> None:
    student, teacher = drawn(5, 6, 5), drawn(6, 6, 5)
    plain = losses.kd(student, teacher, temperature=1.0)
    assert losses.wttm(student, teacher, temperature=1.0).item() == pytest.approx(plain.item(), rel=1e-12)


def test_mlld_is_the_papers() -> None:
    student, teacher, temperatures = drawn(7, 4, 3), drawn(8, 4, 3), (2.0, 5.0)
    levels = np.zeros(3)
    for temperature in temperatures:
        p, q = ([softmax(row, temperature) for row in x.numpy()] for x in (student, teacher))
        levels[0] += temperature**2 * np.mean([kl(b, a) for a, b in zip(p, q, strict=True)])
        for i in range(4):
            for j in range(4):
                mine, theirs = (sum(x[i][c] * x[j][c] for c in range(3)) for x in (p, q))
                levels[1] += (mine - theirs) ** 2 / 4
        for c in range(3):
            for d in range(3):
                mine, theirs = (sum(x[i][c] * x[i][d] for i in range(4)) for x in (p, q))
                levels[2] += (mine - theirs) ** 2 / 3
    for weights in ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)):
        instances, batches, classes = weights
        found = losses.mlld(
            student, teacher, temperatures=temperatures, instances=instances, batches=batches, classes=classes
        )
        assert found.item() == pytest.approx(float(np.dot(levels, weights)), rel=1e-12), weights


def np_sdd(student: np.ndarray, teacher: np.ndarray, *, temperature: float, complementary: float) -> float:
    """SD-KD over SCALES, region by region; all sides are divisible by the scales."""
    terms = list[float]()
    for i, label in enumerate(LABELS.tolist()):
        whole = teacher[i].mean((1, 2, 3)).argmax()
        target = whole if label < 0 else label
        for t, h, w in SCALES:
            for a in range(t):
                for b in range(h):
                    for c in range(w):
                        cells = list[np.ndarray]()
                        for x in (student[i], teacher[i]):
                            size = [n // s for n, s in zip(x.shape[1:], (t, h, w), strict=True)]
                            part = x[:, a * size[0] : (a + 1) * size[0], b * size[1] : (b + 1) * size[1]]
                            cells.append(part[..., c * size[2] : (c + 1) * size[2]].mean((1, 2, 3)))
                        unlike = (cells[1].argmax() == target) != (whole == target)
                        value = kl(softmax(cells[1], temperature), softmax(cells[0], temperature))
                        terms.append((complementary if unlike else 1.0) * temperature**2 * value)
    return float(np.mean(terms))


def test_sdd_is_the_papers() -> None:
    student, teacher = drawn(9, 6, 5, 2, 4, 2), drawn(10, 6, 5, 4, 2, 4)
    for complementary in (1.0, 2.0):
        expected = np_sdd(student.numpy(), teacher.numpy(), temperature=4.0, complementary=complementary)
        found = losses.sdd(student, teacher, LABELS, scales=SCALES, complementary=complementary)
        assert found.item() == pytest.approx(expected, rel=1e-12)
    assert np_sdd(student.numpy(), teacher.numpy(), temperature=4.0, complementary=2.0) > np_sdd(
        student.numpy(), teacher.numpy(), temperature=4.0, complementary=1.0
    )  # some regions are complementary


def test_sdd_of_the_whole_map_is_kd_or_dkd() -> None:
    student, teacher = drawn(9, 6, 5, 2, 4, 2), drawn(10, 6, 5, 4, 2, 4)
    whole = student.mean((2, 3, 4)), teacher.mean((2, 3, 4))
    one = losses.sdd(student, teacher, LABELS, scales=((1, 1, 1), (1, 1, 1)))
    assert one.item() == pytest.approx(losses.kd(*whole).item(), rel=1e-12)
    one = losses.sdd(student, teacher, LABELS, scales=((1, 1, 1),), alpha=1.0, beta=8.0)
    assert one.item() == pytest.approx(losses.dkd(*whole, LABELS).item(), rel=1e-12)


def test_sdd_cuts_scales_down_to_the_smaller_grid() -> None:
    student, teacher = drawn(9, 6, 5, 1, 2, 2), drawn(10, 6, 5, 4, 4, 4)
    fine = losses.sdd(student, teacher, LABELS, scales=((1, 1, 1), (4, 2, 4)))
    assert torch.equal(fine, losses.sdd(student, teacher, LABELS, scales=((1, 1, 1), (1, 2, 2), (2, 2, 2))))


@pytest.mark.parametrize("gamma", [1.0, 1.4])
def test_ofa_is_the_papers(gamma: float) -> None:
    student, teacher, exits = drawn(11, 6, 5), drawn(12, 6, 5), [drawn(13, 6, 5), drawn(14, 6, 5)]

    def one(logits: Tensor) -> float:
        rows = list[float]()
        for z, y, label in zip(logits.numpy(), teacher.numpy(), LABELS.tolist(), strict=True):
            q, p = softmax(z), softmax(y)
            here = [float(c == label) for c in range(5)]
            rows.append(-sum(((p[c] + here[c]) ** gamma - here[c]) * math.log(q[c]) for c in range(5)))
        return float(np.mean(rows))

    expected = one(student) + 0.5 * sum(one(logits) for logits in exits)
    found = losses.ofa(student, teacher, LABELS, exits, gamma=gamma, exits=0.5)
    assert found.item() == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------- what holds for all of them


def posterior(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilities, in the precision in which the loss computes."""
    return teacher.double().softmax(1).to(torch.promote_types(student.dtype, torch.float32))


ON_LOGITS: dict[str, Callable[..., Tensor]] = {
    "kd": losses.kd,
    "dkd": lambda s, t, **k: losses.dkd(s, t, LABELS[: len(s)], **k),
    "dist": lambda s, t, **k: losses.dist(s, t, gamma=0.0, **k),
    "logit_std": losses.logit_std,
    "wttm": losses.wttm,
    "mlld": lambda s, t, **k: losses.mlld(s, t, batches=0.0, classes=0.0, **k),
    "ofa": lambda s, t, **k: losses.ofa(s, t, LABELS[: len(s)], [s * 0.5], gamma=1.4, **k),
    "mean_teacher": losses.mean_teacher,
    "fixmatch": lambda s, t, **k: losses.fixmatch(s, t, threshold=0.3, **k),
    "pseudo": lambda s, t, **k: losses.pseudo(s, posterior(s, t), torch.arange(len(s)) % 3 < 2, **k),
}
ON_LABELS: dict[str, Callable[..., Tensor]] = {
    "ce": lambda s, y, **k: losses.ce(s, y, smoothing=0.1, **k),
    "gce": losses.gce,
    "sce": losses.sce,
    "elr": lambda s, y, **k: losses.ELR(clips=6, classes=5).eval()(s, y, torch.arange(len(s)), **k),
}
WHOLE: dict[str, Callable[..., Tensor]] = {
    **{name: f for name, f in ON_LOGITS.items() if name not in ("dist", "mlld")},
    "dist": losses.dist,
    "mlld": losses.mlld,
    "standardised kd": lambda s, t: losses.kd(losses.standardise(s), losses.standardise(t)),
    **{name: (lambda s, _, f=f: f(s, LABELS[: len(s)])) for name, f in ON_LABELS.items()},
}


def each_of(name: str, student: Tensor, teacher: Tensor, **params: Tensor) -> Tensor:
    return ON_LOGITS[name](student, teacher, **params)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_weights_of_clips_make_a_weighted_mean(name: str) -> None:
    """The weighted loss is the mean of the losses of single clips, weighed to a mean of 1."""
    student, teacher = drawn(20, 6, 5), drawn(21, 6, 5)
    weights = torch.tensor([0.0, 1.0, 3.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    whole = each_of(name, student, teacher, weights_B=weights)
    one_clip = torch.zeros(6, dtype=torch.float64)
    singles = [
        each_of(name, student, teacher, weights_B=one_clip.index_fill(0, torch.tensor(i), 1.0)) for i in range(6)
    ]
    expected = sum(w * s for w, s in zip(weights, singles, strict=True)) / weights.sum()
    assert whole.item() == pytest.approx(expected.item(), rel=1e-12)
    plain = each_of(name, student, teacher)
    assert plain.item() == pytest.approx(each_of(name, student, teacher, weights_B=weights * 0 + 7).item(), rel=1e-12)
    assert plain.item() == pytest.approx(torch.stack(singles).mean().item(), rel=1e-12) and len({*singles}) > 1


@pytest.mark.parametrize("name", ON_LABELS)
def test_weights_count_over_the_labelled_clips(name: str) -> None:
    student, weights = drawn(22, 6, 5), torch.tensor([1.0, 3.0, 100.0, 2.0, 0.0, 50.0], dtype=torch.float64)
    whole = ON_LABELS[name](student, LABELS, weights_B=weights)
    singles = [ON_LABELS[name](student, LABELS.where(torch.arange(6) == i, -1)) for i in (0, 1, 3, 4)]
    expected = (1 * singles[0] + 3 * singles[1] + 2 * singles[2]) / 6
    assert whole.item() == pytest.approx(expected.item(), rel=1e-12)


def test_sdd_with_weights_and_standardised_regions() -> None:
    student, teacher = drawn(9, 6, 5, 2, 4, 2), drawn(10, 6, 5, 4, 2, 4)
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    one, other = (losses.sdd(student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1]) for i in (2, 4))
    found = losses.sdd(student, teacher, LABELS, weights_B=weights)
    assert found.item() == pytest.approx((one + 3 * other).item() / 4, rel=1e-12)
    scaled = losses.sdd(student * 5 + 3, teacher, LABELS, standardised=True)
    assert scaled.item() == pytest.approx(losses.sdd(student, teacher, LABELS, standardised=True).item(), rel=1e-6)


@pytest.mark.parametrize("name", [*ON_LOGITS, *ON_LABELS])
def test_weights_of_zero_give_zero_with_zero_gradient(name: str) -> None:
    student, nothing = drawn(20, 6, 5).requires_grad_(), torch.zeros(6, dtype=torch.float64)
    if name in ON_LOGITS:
        loss = ON_LOGITS[name](student, drawn(21, 6, 5), weights_B=nothing)
    else:
        loss = ON_LABELS[name](student, LABELS, weights_B=nothing)
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


def test_losses_between_clips_refuse_weights() -> None:
    student, teacher, weights = drawn(20, 6, 5), drawn(21, 6, 5), torch.ones(6)
    with pytest.raises(ValueError, match="only with gamma = 0"):
        losses.dist(student, teacher, weights_B=weights)
    with pytest.raises(ValueError, match="only with batches = 0 and classes = 0"):
        losses.mlld(student, teacher, classes=0.0, weights_B=weights)


def test_standardised_kd_is_logit_std_to_the_bit() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        student, teacher = drawn(30, 6, 5, dtype=dtype), drawn(31, 6, 5, dtype=dtype)
        switched = losses.kd(losses.standardise(student), losses.standardise(teacher), temperature=2.0)
        assert torch.equal(switched, losses.logit_std(student, teacher, temperature=2.0))


def test_standardise_is_the_z_score() -> None:
    rows = drawn(32, 3, 4)
    for row, found in zip(rows.numpy(), losses.standardise(rows).numpy(), strict=True):
        mean = sum(row) / 4
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / 3)
        np.testing.assert_allclose(found, [(z - mean) / (deviation + 1e-7) for z in row], rtol=1e-12)
    with pytest.raises(ValueError, match="two classes or more"):
        losses.standardise(rows[:, :1])


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - {"elr"}))
def test_gradients_are_those_of_the_values(name: str) -> None:
    student, teacher = drawn(40, 6, 5).requires_grad_(), drawn(41, 6, 5)
    assert torch.autograd.gradcheck(lambda x: WHOLE[name](x, teacher), student)


def test_the_memory_of_elr_gets_no_gradient() -> None:
    """The gradient is that of the value with t held constant."""
    module = losses.ELR(clips=6, classes=5).double()
    module(drawn(44, 6, 5), LABELS, torch.arange(6))
    student = drawn(45, 6, 5).requires_grad_()
    p = student.detach().softmax(1).clamp(1e-4, 1 - 1e-4)
    t = 0.7 * module.targets + 0.3 * p / p.sum(1, keepdim=True)

    def held(x: Tensor) -> Tensor:
        q = x.softmax(1).clamp(1e-4, 1 - 1e-4)
        return losses.ce(x, LABELS) + 3 * (1 - (q * t).sum(1)).log()[LABELS >= 0].mean()

    assert torch.autograd.gradcheck(held, student)
    (expected,) = torch.autograd.grad(held(student), student)
    (found,) = torch.autograd.grad(module.eval()(student, LABELS, torch.arange(6)), student)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_gradients_of_sdd(alpha: float | None) -> None:
    student, teacher = drawn(42, 2, 3, 1, 2, 2).requires_grad_(), drawn(43, 2, 3, 1, 2, 2)
    assert torch.autograd.gradcheck(lambda x: losses.sdd(x, teacher, LABELS[:2], alpha=alpha, beta=alpha), student)


def test_teachers_get_no_gradient() -> None:
    for name in ("wttm", "mlld", "ofa", "mean_teacher"):
        student, teacher = drawn(40, 6, 5).requires_grad_(), drawn(41, 6, 5).requires_grad_()
        WHOLE[name](student, teacher).backward()
        assert teacher.grad is None, name
    student, teacher = drawn(42, 2, 3, 1, 2, 2).requires_grad_(), drawn(43, 2, 3, 1, 2, 2).requires_grad_()
    losses.sdd(student, teacher, LABELS[:2]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", WHOLE)
def test_half_is_raised_and_autocast_is_off(name: str, dtype: torch.dtype) -> None:
    student, teacher = drawn(50, 6, 5, dtype=dtype), drawn(51, 6, 5, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = WHOLE[name](student, teacher)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(WHOLE[name](student.double(), teacher.double()).item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_extreme_logits_are_finite(name: str) -> None:
    student = torch.zeros(6, 5).index_fill(1, torch.tensor(1), 500.0).requires_grad_()
    teacher = torch.zeros(6, 5).index_fill(1, torch.tensor(3), 500.0)
    for signs in (1.0, -1.0):
        loss = WHOLE[name](student * signs, teacher * signs)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all(), signs


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_of_one_clip_has_a_loss(name: str) -> None:
    assert WHOLE[name](drawn(60, 1, 5), drawn(61, 1, 5)).isfinite()


@pytest.mark.parametrize("name", ON_LABELS)
def test_without_labels_there_is_no_loss_and_no_gradient(name: str) -> None:
    student = drawn(62, 3, 5).requires_grad_()
    loss = ON_LABELS[name](student, torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize("name", ["wttm", "mlld", "ofa", "mean_teacher"])
def test_other_classes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(6, 5\).*\(6, 4\)"):
        WHOLE[name](drawn(0, 6, 5), drawn(0, 6, 4))
