"""How often a step waits for the device, what a single clip runs as, and the layout and colours of clips."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as tv

from stagedkd import losses
from stagedkd.data.source import SimulatedClips
from stagedkd.data.views import View, apply_views, fit_input
from stagedkd.errors import TrainingError
from stagedkd.models.resnet3d import resnet3d
from stagedkd.spec.schema import Clip, Losses, Simulated, Train
from stagedkd.train import checkpoint
from stagedkd.train.evaluate import latency, predict
from stagedkd.train.loop import fit
from tests.test_train import CPU, job, phase

ALL = Losses.model_validate(
    {"ce": 0.1, "kd": 0.9, "gce": 0.1, "dkd": 0.1, "mmd": 0.1, "gaussian_w2": 0.1, "at": 1.0, "sp": 1.0}
)
SGD = Train(batch=8, lr=1e-2, optimizer="sgd", clip_grad=1.0, ema=0.9)  # AdamW counts its steps on the host


class Waits(TorchDispatchMode):
    """Counts the operations that make a host wait for a GPU: values that are read, and sizes that depend on values."""

    SIZED = ("aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::is_nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = str(func._schema.name), dict(kwargs or {})
        to_host = name == "aten::_to_copy" and kwargs.get("device") == CPU
        masks = name.startswith("aten::index") and any(
            isinstance(a, Tensor) and a.dtype == torch.bool
            for arg in args
            if isinstance(arg, list | tuple)
            for a in arg
        )
        if name == "aten::_local_scalar_dense" or name in self.SIZED or to_host or masks:
            self.counts[name] += 1
        return func(*args, **kwargs)


def waits(tmp_path: Path, chosen: Losses, **fields: object) -> tuple[int, Counter[str]]:
    """The steps of a training, and how often its host waits."""
    work = job(tmp_path, (phase(epochs=2, losses=chosen, pairs=((1, 1), (2, 2)), train=SGD),), **fields)
    work.feed.batch(work.phases[0], 0, 0, CPU)  # renders the clips that are kept
    with Waits() as counted:
        progress = fit(work)
    return progress.total, counted.counts


def test_the_counter_sees_what_waits() -> None:
    values, mask = torch.rand(4), torch.tensor([True, False, True, False])
    with Waits() as counted:
        values[0].item()
        _ = values[mask]
        values.to("cpu", copy=True)
        bool(mask.any())
    assert sum(counted.counts.values()) == 4


def test_a_step_waits_for_the_device_once(tmp_path: Path) -> None:
    steps, counts = waits(tmp_path, ALL, checkpoint_seconds=1e9)
    assert steps == 6 and counts == {"aten::_to_copy": 6}


def test_steps_between_two_reads_wait_for_nothing(tmp_path: Path) -> None:
    steps, counts = waits(tmp_path, ALL, checkpoint_seconds=1e9, loss_every=100)
    assert steps == 6 and counts == {"aten::_to_copy": 2}  # at the ends of the epochs


def test_reading_seldom_changes_no_result(tmp_path: Path) -> None:
    ends: list[tuple[Any, ...]] = []
    for every in (1, 2, 100):
        work = job(tmp_path / str(every), (phase(epochs=3, losses=ALL, pairs=((1, 1),)),), loss_every=every)
        progress = fit(work)
        rows = [json.loads(line) for line in (tmp_path / str(every) / "events.jsonl").read_text("utf-8").splitlines()]
        kept = [{k: v for k, v in row.items() if k not in ("time", "clips_per_s", "crc")} for row in rows]
        ends.append((kept, progress.last, progress.tallies, work.student.net.state_dict()))
    for other in ends[1:]:
        assert other[:3] == ends[0][:3]
        assert all(torch.equal(tensor, other[3][name]) for name, tensor in ends[0][3].items())


@pytest.mark.parametrize("every", [1, 2, 100])
def test_a_loss_that_is_read_late_is_placed_at_its_step_and_reaches_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    kd, calls = losses.kd, iter(range(100))
    wild = lambda *a, **k: kd(*a, **k) * (float("nan") if next(calls) == 4 else 1.0)  # noqa: E731
    monkeypatch.setitem(losses.FUNCTIONS, "kd", wild)
    work = job(tmp_path, (phase(epochs=3),), checkpoint_seconds=0.0, loss_every=every)
    with pytest.raises(TrainingError, match=r"loss 'kd' is nan at phase p, epoch 2, step 5"):
        fit(work)
    saved = checkpoint.load(tmp_path)
    assert saved is not None and saved["at"]["step"] == 3
    assert all(t.isfinite().all() for t in saved["student"].values() if t.is_floating_point())


def test_a_loss_that_is_not_finite_updates_no_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kd = losses.kd
    monkeypatch.setitem(losses.FUNCTIONS, "kd", lambda *a, **k: kd(*a, **k) * float("nan"))
    work = job(tmp_path, (phase(),))
    before = {name: p.detach().clone() for name, p in work.student.named_parameters()}
    with pytest.raises(TrainingError):
        fit(work)
    assert all(torch.equal(p, before[name]) for name, p in work.student.named_parameters())


# ---------------------------------------------------------------- one clip, and the layout


def test_a_single_clip_never_reaches_a_convolution_alone() -> None:
    network, sizes = resnet3d(4, (1, 1), "full", 3), list[int]()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    source = SimulatedClips(Simulated(kind="shapes", classes=3), ["val"] * 5, Clip(frames=4, size=16), CPU)
    scores = predict(network, source, np.arange(5), 2, 1, 1, None, lambda *_: None)
    latency(network, 4, 16, CPU)
    assert len(scores) == 5 and sizes and set(sizes) == {2}
    whole = predict(network, source, np.arange(5), 5, 1, 1, None, lambda *_: None)
    assert np.allclose(scores, whole, atol=1e-5)


def test_every_convolution_gets_clips_channels_last(tmp_path: Path) -> None:
    work, formats = job(tmp_path, (phase(),)), list[bool]()
    for module in work.student.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(
                lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last_3d))
            )
    fit(work)
    assert formats and all(formats)


# ---------------------------------------------------------------- colours

FACTOR = st.one_of(st.just(1.0), st.floats(0.01, 2))


@settings(deadline=None, max_examples=40)
@given(FACTOR, FACTOR, FACTOR, st.sampled_from([0.0, 0.0, 0.2, -0.4]), st.booleans(), st.integers(0, 9))
def test_views_are_those_of_torchvision(
    brightness: float, contrast: float, saturation: float, hue: float, flip: bool, seed: int
) -> None:
    drawn = torch.randint(0, 256, (3, 14, 17, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    frames = drawn.permute(0, 3, 1, 2)
    views = [
        View(np.arange(3), box, flip, brightness, contrast, saturation, hue) for box in ((1, 2, 12, 12), (0, 3, 11, 13))
    ]
    for view, clip in zip(views, apply_views([frames, frames], views, 12), strict=True):
        picture = tv.resized_crop(frames, *view.box, [12, 12], antialias=True)
        picture = (tv.horizontal_flip(picture) if flip else picture).float() / 255
        picture = tv.adjust_contrast(tv.adjust_brightness(picture, brightness), contrast)
        picture = tv.adjust_saturation(picture, saturation)
        assert clip.min() >= 0 and clip.max() <= 1
        tolerance = 1e-6
        if hue:
            picture, tolerance = tv.adjust_hue(picture, hue), 2e-4  # the hue of a near-grey is rounded coarsely
        assert torch.allclose(clip.transpose(0, 1), picture, atol=tolerance, rtol=0)


def test_the_input_of_a_network_is_the_normalised_clip() -> None:
    clip = torch.rand(2, 3, 4, 8, 8)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1, 1) for v in ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    )
    assert torch.equal(fit_input(clip, None), (clip - mean) / std)
