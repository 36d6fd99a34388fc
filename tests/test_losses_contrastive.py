"""CRD against its paper's formula in float64 NumPy, its memories, and its edges."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagedkd.losses import CRD

CLIPS, STUDENT, TEACHER, WIDTH = 12, (5, 2, 3, 3), (7, 1, 2, 2), 6


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def made(negatives: int = 4, dtype: torch.dtype = torch.float64, **others: float) -> CRD:
    torch.manual_seed(0)
    return CRD(
        clips=CLIPS,
        student_channels=STUDENT[0],
        teacher_channels=TEACHER[0],
        embedding=WIDTH,
        negatives=negatives,
        **others,  # pyright: ignore[reportArgumentType]
    ).to(dtype)


def batch(seed: int, *numbers: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    count = len(numbers)
    return (
        drawn(seed, count, *STUDENT, dtype=dtype),
        drawn(seed + 1, count, *TEACHER, dtype=dtype),
        torch.tensor(numbers),
    )


class PaperCrd:
    """Section 3.2 and the authors' memory, clip by clip: h = p / (p + M/n), p = exp(g / tau) / Z; no log space."""

    def __init__(self, crd: CRD, temperature: float, momentum: float) -> None:
        self.layers = [
            (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
            for layer in (crd.student_embedding, crd.teacher_embedding)
        ]
        self.memories = [crd.student_memory.numpy().copy(), crd.teacher_memory.numpy().copy()]
        self.temperature, self.momentum = temperature, momentum
        self.z: list[float] = []

    def __call__(self, student: Tensor, teacher: Tensor, chosen: Tensor) -> float:
        total, embedded = 0.0, []
        for side, feat in enumerate((student, teacher)):
            weight, bias = self.layers[side]
            raw = feat.numpy().mean((2, 3, 4)) @ weight.T + bias
            embedded.append(raw / np.linalg.norm(raw, axis=1, keepdims=True))
        chances = []
        for side in (0, 1):
            other = self.memories[1 - side]
            g = np.array([[other[c] @ e for c in row] for row, e in zip(chosen.numpy(), embedded[side], strict=True)])
            chances.append(np.exp(g / self.temperature))
        if not self.z:
            self.z = [float(c.mean()) * CLIPS for c in chances]
        noise = (chosen.shape[1] - 1) / CLIPS
        for chance, z in zip(chances, self.z, strict=True):
            h = chance / z / (chance / z + noise)
            total -= np.mean([np.log(row[0]) + np.log(1 - row[1:]).sum() for row in h])
        for memory, new in zip(self.memories, embedded, strict=True):
            for number, e in zip(chosen[:, 0].tolist(), new, strict=True):
                mixed = self.momentum * memory[number] + (1 - self.momentum) * e
                memory[number] = mixed / np.linalg.norm(mixed)
        return total


@pytest.mark.parametrize(("temperature", "momentum", "negatives"), [(0.07, 0.5, 4), (0.5, 0.9, 11), (1.0, 0.0, 1)])
def test_crd_is_the_papers_over_several_steps(
    monkeypatch: pytest.MonkeyPatch, temperature: float, momentum: float, negatives: int
) -> None:
    """The second and third step see the memories that were written, and the Z of the first batch."""
    crd = made(negatives, temperature=temperature, momentum=momentum)
    paper = PaperCrd(crd, temperature, momentum)
    for step, numbers in enumerate([(0, 1, 2), (3, 4, 5, 0), (1,)]):
        student, teacher, rows_B = batch(10 + 2 * step, *numbers)
        chosen = crd.draw(rows_B)
        monkeypatch.setattr(crd, "draw", lambda _, chosen=chosen: chosen)
        found = crd(student, teacher, rows_B).item()
        monkeypatch.undo()
        assert found == pytest.approx(paper(student, teacher, chosen), rel=1e-10)
        np.testing.assert_allclose(crd.student_memory.numpy(), paper.memories[0], rtol=1e-10)
        np.testing.assert_allclose(crd.teacher_memory.numpy(), paper.memories[1], rtol=1e-10)
        np.testing.assert_allclose(crd.log_z.exp().numpy(), paper.z, rtol=1e-10)


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 1000))
def test_negatives_are_other_clips(clips: int, negatives: int, seed: int) -> None:
    crd = CRD(clips=clips, student_channels=1, teacher_channels=1, embedding=2, negatives=negatives)
    numbers = torch.arange(clips)
    torch.manual_seed(seed)
    chosen = crd.draw(numbers)
    assert chosen.shape == (clips, 1 + min(negatives, clips - 1)) and chosen[:, 0].equal(numbers)
    others = chosen[:, 1:]
    assert (others != numbers[:, None]).all() and others.min() >= 0 and others.max() < clips
    torch.manual_seed(seed)
    assert crd.draw(numbers).equal(chosen)  # torch's generator, which checkpoints keep, is all that decides


def test_negatives_are_drawn_evenly() -> None:
    crd = CRD(clips=5, student_channels=1, teacher_channels=1, embedding=2)
    torch.manual_seed(3)
    found = torch.cat([crd.draw(torch.full((1000,), 2))[:, 1:].flatten() for _ in range(3)]).bincount(minlength=5)
    assert found[2] == 0
    np.testing.assert_allclose(found[[0, 1, 3, 4]].numpy(), 3000, atol=4 * math.sqrt(12000 * 3 / 16))


def test_going_on_from_a_state_dict_gives_the_same_bits() -> None:
    crd = made(dtype=torch.float32)
    crd(*batch(20, 0, 1, 2, dtype=torch.float32))
    saved = copy.deepcopy(crd.state_dict())
    torch.manual_seed(5)
    expected = [crd(*batch(22 + 2 * i, 2, 3, dtype=torch.float32)).item() for i in range(3)]
    torch.manual_seed(99)
    again = CRD(clips=CLIPS, student_channels=STUDENT[0], teacher_channels=TEACHER[0], embedding=WIDTH, negatives=4)
    again.load_state_dict(saved)
    torch.manual_seed(5)
    assert [again(*batch(22 + 2 * i, 2, 3, dtype=torch.float32)).item() for i in range(3)] == expected


def test_eval_writes_nothing() -> None:
    crd = made().eval()
    saved = copy.deepcopy(crd.state_dict())
    assert crd(*batch(30, 0, 1)).isfinite()
    assert all(saved[name].equal(value) for name, value in crd.state_dict().items())


def test_gradients() -> None:
    """gradcheck in double; Z is constant, so it is set first, and memories are, so nothing is written."""
    crd = made()
    crd(*batch(40, 0, 1, 2))
    crd.eval()
    student, teacher, numbers = batch(42, 3, 4, 5)

    def loss(feat: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(7)
        names = [name for name, _ in crd.named_parameters()]
        found = torch.func.functional_call(crd, dict(zip(names, parameters, strict=True)), (feat, teacher, numbers))
        assert isinstance(found, Tensor)
        return found

    parameters = [p.detach().clone().requires_grad_() for p in crd.parameters()]
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), *parameters))


def test_the_teachers_features_get_no_gradient_but_its_embedding_does() -> None:
    crd = made()
    student, teacher, numbers = batch(50, 0, 1, 2)
    student.requires_grad_(), teacher.requires_grad_()
    crd(student, teacher, numbers).backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in crd.parameters()) and len(list(crd.parameters())) == 4
    assert not any(buffer.requires_grad for buffer in crd.buffers())


def test_z_gets_no_gradient() -> None:
    """The first batch sets Z: its gradient is that of the same batch under the Z that was kept."""
    crd, student, teacher, numbers = made(), *batch(52, 0, 1, 2)
    before = copy.deepcopy(crd.state_dict())
    gradients = []
    for z in (before["log_z"], None):
        state = before if z is not None else before | {"log_z": crd.log_z.clone()}
        crd.load_state_dict(state)
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(crd(feat := student.clone().requires_grad_(), teacher, numbers), feat)[0])
    assert crd.log_z.isfinite().all()
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_raised_and_autocast_is_off(dtype: torch.dtype) -> None:
    student, teacher, numbers = batch(60, 0, 1, 2)
    student, teacher = student.to(dtype), teacher.to(dtype)

    def found(crd: CRD, feats: tuple[Tensor, Tensor]) -> Tensor:
        torch.manual_seed(2)
        return crd(*feats, numbers)

    crd = made(dtype=torch.float32)
    half = found(copy.deepcopy(crd), (student, teacher))
    with torch.autocast("cpu", torch.bfloat16):
        inside = found(copy.deepcopy(crd), (student, teacher))
    assert half.dtype == inside.dtype == torch.float32 and half.item() == inside.item()
    exact = found(copy.deepcopy(crd).double(), (student.double(), teacher.double()))
    kept = found(copy.deepcopy(crd), (student.double(), teacher.double()))
    assert exact.dtype == kept.dtype == torch.float64
    assert half.item() == pytest.approx(exact.item(), rel=1e-4) and kept.item() == pytest.approx(exact.item(), rel=1e-6)


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "dead": torch.zeros_like,
    "large": lambda x: x * 1e30,
    "largest half": lambda x: torch.full_like(x, 65504.0),
    "one large channel": lambda x: torch.cat([x[:, :1] * 1e30, x[:, 1:]], dim=1),
    "small": lambda x: x * 1e-30,
    "1x1x1": lambda x: x[..., :1, :1, :1],
    "one clip": lambda x: x[:1],
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("temperature", [0.07, 0.002])
def test_extreme_features_are_finite(kind: str, temperature: float) -> None:
    """exp(1 / 0.002) is beyond float64: similarities of 500, as with extreme logits."""
    crd = made(dtype=torch.float32, temperature=temperature)
    for _ in range(2):
        student, teacher, numbers = batch(70, 0, 1, 2, dtype=torch.float32)
        student, teacher = EXTREMES[kind](student).requires_grad_(), EXTREMES[kind](teacher)
        crd.zero_grad()
        loss = crd(student, teacher, numbers[: len(student)])
        loss.backward()
        assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in crd.parameters())
        assert all(value.isfinite().all() for value in crd.state_dict().values())


def test_large_features_keep_their_direction() -> None:
    """Their squares are beyond float32: a norm of inf would make the embedding zero, finite and wrong."""
    found = []
    for dtype in (torch.float32, torch.float64):
        crd, (student, teacher, numbers) = made(dtype=torch.float32).to(dtype), batch(75, 0, 1, 2, dtype=torch.float32)
        student = (student * 1e30).to(dtype).requires_grad_()
        torch.manual_seed(4)
        loss = crd(student, teacher.to(dtype), numbers)
        (gradient,) = torch.autograd.grad(loss, student)
        found.append((loss.item(), (gradient * 1e30).double()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-4)
    assert found[1][1].abs().max() > 0.01


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_order_of_a_batch_does_not_count(seed: int) -> None:
    """Of two clips, each one's negative is certain: nothing but the order differs."""
    torch.manual_seed(seed)
    crd = CRD(clips=2, student_channels=3, teacher_channels=3, embedding=4).double()
    student, teacher, numbers = drawn(seed, 2, 3, 1, 2, 2), drawn(seed + 1, 2, 3, 1, 2, 2), torch.tensor([0, 1])
    turned = copy.deepcopy(crd)
    plain = crd(student, teacher, numbers).item()
    assert turned(student.flip(0), teacher.flip(0), numbers.flip(0)).item() == pytest.approx(plain, rel=1e-10)
    torch.testing.assert_close(turned.student_memory, crd.student_memory)


def test_training_lowers_it_and_students_find_their_clips() -> None:
    """A student that sees a mixture of the teacher's features learns to tell the 24 clips apart."""
    torch.manual_seed(0)
    clips = 24
    teacher = torch.randn(clips, 8, 1, 2, 2)
    seen = torch.einsum("bcthw,cd->bdthw", teacher, torch.randn(8, 6))
    student = torch.nn.Conv3d(6, 5, 1)
    crd = CRD(clips=clips, student_channels=5, teacher_channels=8, embedding=16, negatives=16)

    def found() -> float:
        raw = crd.student_embedding(student(seen).mean((2, 3, 4)))
        return (raw @ crd.teacher_memory.T).argmax(1).eq(torch.arange(clips)).float().mean().item()

    before = found()
    optimizer = torch.optim.Adam([*student.parameters(), *crd.parameters()], 0.02)
    history = []
    for _ in range(40):
        for numbers in torch.randperm(clips).split(8):
            loss = crd(student(seen[numbers]), teacher[numbers], numbers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert np.mean(history[-12:]) < 0.5 * np.mean(history[:12])
    assert before < 0.3 and found() > 0.8


def test_what_cannot_be_told_apart_is_refused() -> None:
    for clips in (0, 1):
        with pytest.raises(ValueError, match="two or more"):
            CRD(clips=clips, student_channels=3, teacher_channels=3)
    crd = made()
    student, teacher, numbers = batch(80, 0, 1, 2)
    with pytest.raises(ValueError, match=r"batches differ.*'teacher': 2"):
        crd(student, teacher[:2], numbers)
    with pytest.raises(ValueError, match=r"batches differ.*'rows': 1"):
        crd(student, teacher, numbers[:1])
    with pytest.raises(ValueError, match=r"teacher's map \(3, 5, 2, 3, 3\) should have 7 channels"):
        crd(student, student, numbers)
    for bad in (-1, CLIPS):
        with pytest.raises(IndexError, match="out of"):
            crd(student, teacher, torch.tensor([0, 1, bad]))
