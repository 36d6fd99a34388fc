"""Every family of networks as ONNX and OpenVINO, float32: the largest difference of a logit from torch.

    python benchmarks/exports.py [FAMILY ...]

Weights are random, batches are 1, 2, 3 and 5 clips through one export. The clips are coarse random colours, so that
logits differ between clips: of white noise all clips look alike to a deep network, and an export that ignores its input
would pass. The difference is a share of the range of that logit over the clips. BatchNorms have the statistics of a
batch. The families of transformers need the extra `hf`; their configurations are small. It takes half an hour on two
cores; docs/use.md has its table.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stagedkd.deploy.export.graph import FramesToLogits, input_shape
from stagedkd.deploy.export.onnx import Onnx
from stagedkd.deploy.export.openvino import OpenVino
from stagedkd.deploy.export.runtimes import Form, Order, foreign_errors, require
from stagedkd.errors import StagedkdError
from stagedkd.models.build import build
from stagedkd.models.network import Network
from stagedkd.plan.key import Key
from stagedkd.report.card import StudentCard, Versions, frames_of, picture_of
from stagedkd.spec.schema import Arch, Clip
from stagedkd.spec.schema.networks.hf import put_model_digest
from stagedkd.store.manifest import file_digest

SMALL: Mapping[str, Any] = {"frames": 8, "size": 64}
FULL: Mapping[str, Any] = {"frames": 16, "size": 224}
LAYERS, BATCHES = 4, (1, 2, 3, 5)
FAMILIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "resnet3d": ({"arch": "resnet3d", "width": 16, "blocks": (1, 1, 1)}, SMALL),
    "resnet3d r2plus1d": ({"arch": "resnet3d", "width": 16, "blocks": (1, 1, 1), "conv": "r2plus1d"}, SMALL),
    "tsm resnet18": ({"arch": "tsm", "backbone": "resnet18"}, SMALL),
    "tsm mobilenet_v2": ({"arch": "tsm", "backbone": "mobilenet_v2"}, SMALL),
    "tsm mobilenet_v3_small": ({"arch": "tsm", "backbone": "mobilenet_v3_small"}, SMALL),
    "r3d_18": ({"arch": "r3d_18"}, SMALL),
    "mc3_18": ({"arch": "mc3_18"}, SMALL),
    "r2plus1d_18": ({"arch": "r2plus1d_18"}, SMALL),
    "s3d": ({"arch": "s3d"}, FULL),
    "swin3d_t": ({"arch": "swin3d_t"}, SMALL),
    "mvit_v1_b": ({"arch": "mvit_v1_b"}, FULL),
    "mvit_v2_s": ({"arch": "mvit_v2_s"}, FULL),
    **{name: ({"arch": "hf"}, SMALL) for name in ("videomae", "timesformer", "vivit", "vjepa2")},
}
_TOKENS: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "patch_size": 16,
    "image_size": 64,
    "num_frames": 8,
}
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {  # small ones, for clips of 8x64x64
    "videomae": _TOKENS,
    "timesformer": _TOKENS,
    "vivit": {**_TOKENS, "tubelet_size": [2, 16, 16]},
    "vjepa2": {**_TOKENS, "crop_size": 64, "frames_per_clip": 8, "num_pooler_layers": 1, "mlp_ratio": 2},
}


def main() -> None:
    """Print a row for each family."""
    torch.set_num_threads(2)
    forms: tuple[type[Form], ...] = (Onnx, OpenVino)
    versions = {name: value for form in forms for name, value in require(form, int8=True).items()}
    versions = {"torch": torch.__version__, "transformers": version("transformers"), **versions}
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    print(f"{'network':<24}{'clip':>8}{'onnx':>12}{'s':>6}{'openvino':>12}{'s':>6}")
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            print(_row(name, Path(folder), forms), flush=True)


def _row(name: str, root: Path, forms: tuple[type[Form], ...]) -> str:
    """Export a family to each form, and compare it with torch."""
    values, view = dict(FAMILIES[name][0]), FAMILIES[name][1]
    if name in CONFIGURATIONS:
        values |= _model_folder(root, name)
    arch, clip = TypeAdapter(Arch).validate_python(values), Clip.model_validate(dict(view))
    order = Order(card_of(arch, clip), partial(new, arch, clip, root))
    module = FramesToLogits(order.new_network().eval(), order.card).eval()
    frames = coarse(sum(BATCHES), input_shape(order.card), 1)
    with torch.inference_mode():
        expected = np.concatenate([module(torch.from_numpy(part)).numpy() for part in _batches(frames)])
    row = f"{name:<24}{f'{clip.frames}x{clip.size}':>8}"
    for form in forms:
        started = time.monotonic()
        try:
            with foreign_errors(f"{form.name} fails", ""):
                found = _difference(form(), order, root, frames, expected)
            row += f"{found:>12.1e}{time.monotonic() - started:>6.0f}"
        except StagedkdError as error:
            row += f"  {error.message}"
    return row


def _difference(form: Form, order: Order, root: Path, frames: Any, expected: Any) -> float:
    """The largest difference of a logit between an export and torch, as a share of the range of that logit."""
    folder = root / form.name
    folder.mkdir()
    form.write(order, folder)
    run: Callable[[Any], Any] | None = form.load(folder, 2)
    assert run is not None
    found = np.concatenate([run(part) for part in _batches(frames)])
    return float((np.abs(found - expected).max(0) / np.ptp(expected, axis=0)).max())


def _batches(frames: Any) -> list[Any]:
    return np.split(frames, np.cumsum(BATCHES)[:-1])


def _model_folder(root: Path, name: str) -> dict[str, Any]:
    """Write a small configuration of transformers. Returns the values that a spec would have."""
    (root / name).mkdir()
    text = json.dumps({"model_type": name, **CONFIGURATIONS[name]})
    (root / name / "config.json").write_text(text, "utf-8")
    values = {"arch": "hf", "model": name, "layers": LAYERS, "pretrained": False}
    put_model_digest(values, root, file_digest)
    return values


def coarse(count: int, shape: tuple[int, int, int, int], seed: int) -> Any:
    """Random clips, uint8 (count, T, H, W, 3), of colours that stay the same over 2 frames and 16x16 pixels."""
    frames, height, width, _ = shape
    dice = np.random.default_rng(seed)
    tiles = dice.integers(0, 256, (count, frames // 2, -(-height // 16), -(-width // 16), 3), np.uint8)
    return tiles.repeat(2, 1).repeat(16, 2).repeat(16, 3)[:, :, :height, :width].copy()


def card_of(arch: Any, clip: Clip) -> StudentCard:
    """The card of a network that nobody trained."""
    return StudentCard(
        name="random",
        key=Key("0" * 64),
        weights="0" * 64,
        classes=("a", "b", "c", "d"),
        arch=arch,
        frames=frames_of(clip, None),
        picture=picture_of(clip, None),
        clip=clip,
        versions=Versions(stagedkd=""),
    )


def new(arch: Any, clip: Clip, root: Path) -> Network:
    """The network, with the same weights at each call. BatchNorms have the statistics of a batch, and networks without
    them larger weights than they begin with, or else the logits would be nearly constant."""
    torch.manual_seed(0)
    network = build(arch, 4, root=root)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for module in norms:
        module.momentum = 1.0
    if norms:
        card = card_of(arch, clip)
        clips = torch.from_numpy(coarse(4, input_shape(card), 0))
        with torch.no_grad():
            FramesToLogits(network, card).train()(clips)
    else:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return network.eval()


if __name__ == "__main__":
    main()
