"""Exports take any number of clips, and what another library says is an error in a sentence."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd.deploy.export.graph import FramesToLogits, input_shape
from stagedkd.deploy.export.runtimes import Order, Run, foreign_errors
from stagedkd.deploy.export.write import FORMS
from stagedkd.deploy.student import find_student
from stagedkd.errors import TrainingError, UsageError
from stagedkd.models.resnet3d import resnet3d
from stagedkd.plan.key import Key
from stagedkd.report.card import StudentCard, Versions, frames_of, picture_of
from stagedkd.spec.schema import Clip, Input
from stagedkd.spec.schema.networks import Resnet3dArch

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf"), "pt2": ()}


@pytest.fixture(scope="module")
def order() -> Order:
    """A student that derives its input: half of the frames, another size, other colours."""
    clip, view = Clip(frames=6, size=(20, 28)), Input(frames=3, size=(16, 24), normalize="imagenet")
    arch = Resnet3dArch(arch="resnet3d", width=4, blocks=(1, 1))
    card = StudentCard(
        name="random",
        key=Key("0" * 64),
        weights="0" * 64,
        classes=("a", "b", "c"),
        arch=arch,
        frames=frames_of(clip, view),
        picture=picture_of(clip, view),
        clip=clip,
        input=view,
        versions=Versions(stagedkd=""),
    )
    torch.manual_seed(0)
    network = resnet3d(arch.width, arch.blocks, arch.conv, len(card.classes))
    module = FramesToLogits(network, card).train()
    with torch.no_grad():
        for seed in range(20):  # the statistics of its BatchNorms
            module(torch.from_numpy(clips(4, input_shape(card), "noise", seed)))
    return Order(card, partial(copy.deepcopy, network.eval()))


def clips(count: int, shape: tuple[int, ...], kind: str, seed: int) -> Any:
    """Clips, uint8 (count, T, H, W, 3): noise, a colour each, or all dark or all bright."""
    dice = np.random.default_rng(seed)
    if kind == "colours":
        return np.broadcast_to(dice.integers(0, 256, (count, 1, 1, 1, 3), np.uint8), (count, *shape)).copy()
    if kind == "noise":
        return dice.integers(0, 256, (count, *shape), np.uint8)
    return np.full((count, *shape), 255 * (kind == "bright"), np.uint8)


Pair = tuple[Run, Callable[[Any], Any]]


@pytest.fixture(scope="module", params=NEEDS)
def pair(request: pytest.FixtureRequest, order: Order, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """An export, written and loaded once, and torch's network."""
    for package in NEEDS[request.param]:
        pytest.importorskip(package)
    folder, form = tmp_path_factory.mktemp(request.param), FORMS[request.param]()
    form.write(order, folder)
    exported = form.load(folder, 1)
    assert exported is not None
    module = FramesToLogits(order.new_network().eval(), order.card).eval()

    def expected(frames: Any) -> Any:
        with torch.inference_mode():
            return module(torch.from_numpy(frames)).numpy()

    return exported, expected


@pytest.mark.slow
@given(
    count=st.integers(1, 5),
    kind=st.sampled_from(["noise", "colours", "dark", "bright"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_one_export_gives_torchs_logits_for_any_number_of_clips(
    order: Order, pair: Pair, count: int, kind: str, seed: int
) -> None:
    exported, expected = pair
    frames = clips(count, input_shape(order.card), kind, seed)
    found, wanted = exported(frames), expected(frames)
    assert found.shape == wanted.shape == (count, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_clip_has_the_same_logits_beside_others(order: Order, pair: Pair) -> None:
    exported, _ = pair
    frames = clips(5, input_shape(order.card), "colours", 1)
    alone = np.concatenate([exported(frames[i : i + 1]) for i in range(5)])
    assert np.ptp(alone, axis=0).max() > 0.1  # the logits depend on the clip
    np.testing.assert_allclose(exported(frames), alone, rtol=1e-5, atol=1e-5)


def test_an_error_of_another_library_is_a_sentence() -> None:
    with (
        pytest.raises(TrainingError, match=r"^onnx fails: RuntimeError: Aten::fold is unknown$") as caught,
        foreign_errors("onnx fails", "try another form"),
    ):
        raise RuntimeError("\nAten::fold is unknown\nmany\nlines")
    assert caught.value.hint == "try another form"
    for error in (UsageError("ours"), OSError(errno.ENOSPC, "No space left on device"), MemoryError()):
        with pytest.raises(type(error)), foreign_errors("onnx fails", ""):
            raise error


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_takes_a_student_that_derives_its_input(order: Order, form: str, tmp_path: Path) -> None:
    for package in NEEDS[form]:
        pytest.importorskip(package)
    shape = input_shape(order.card)
    calibration = [clips(1, shape, kind, seed) for seed in range(32) for kind in ("colours", "noise")]
    FORMS[form]().write(Order(order.card, order.new_network, None, calibration), tmp_path)
    run = FORMS[form]().load(tmp_path, 1)
    frames = np.concatenate([clips(16, shape, "colours", 99), clips(16, shape, "noise", 99)])
    with torch.inference_mode():
        wanted = FramesToLogits(order.new_network().eval(), order.card).eval()(torch.from_numpy(frames)).numpy()
    assert run is not None
    differences = np.abs(run(frames) - wanted).max(0) / np.ptp(wanted, axis=0)
    assert differences.max() < 0.15, differences


def test_an_export_is_no_student_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{}", "utf-8")
    with pytest.raises(UsageError, match=r"holds no student\.safetensors") as caught:
        find_student(tmp_path)
    assert "give the results folder that it was made from" in caught.value.hint
