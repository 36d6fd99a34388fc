"""Every family of networks as ONNX and OpenVINO, float32: the largest difference of a logit from torch.

It is relative to the largest logit, since random weights may give tiny ones.

    python benchmarks/exports.py [FAMILY ...]

Weights are random, clips are random bytes, batches are 1 to 5 of one export. The families of transformers need the
extra `hf`. It takes minutes; docs/use.md has its table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch.nn.modules.batchnorm import _BatchNorm

from stagedkd.deploy.export.graph import FramesToLogits, input_shape
from stagedkd.deploy.export.onnx import Onnx
from stagedkd.deploy.export.openvino import OpenVino
from stagedkd.deploy.export.runtimes import Order
from stagedkd.errors import StagedkdError
from stagedkd.models.build import build
from stagedkd.models.network import Network
from stagedkd.report.card import StudentCard, Versions, frames_of, picture_of
from stagedkd.spec.schema import Arch, Clip, sides

SMALL: Mapping[str, Any] = {"frames": 8, "size": 64}
FAMILIES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "resnet3d": ({"arch": "resnet3d", "width": 16, "blocks": (1, 1, 1)}, SMALL),
    "resnet3d r2plus1d": ({"arch": "resnet3d", "width": 16, "blocks": (1, 1, 1), "conv": "r2plus1d"}, SMALL),
    "tsm resnet18": ({"arch": "tsm", "backbone": "resnet18"}, SMALL),
    "tsm mobilenet_v2": ({"arch": "tsm", "backbone": "mobilenet_v2"}, SMALL),
    "r3d_18": ({"arch": "r3d_18"}, SMALL),
    "mc3_18": ({"arch": "mc3_18"}, SMALL),
    "r2plus1d_18": ({"arch": "r2plus1d_18"}, SMALL),
    "s3d": ({"arch": "s3d"}, {"frames": 16, "size": 224}),
    "mvit_v2_s": ({"arch": "mvit_v2_s"}, {"frames": 16, "size": 224}),
    "swin3d_t": ({"arch": "swin3d_t"}, {"frames": 8, "size": 64}),
}


def card_of(arch: Any, clip: Clip) -> StudentCard:
    """The card of a network that nobody trained."""
    return StudentCard(
        name="random",
        key="0" * 64,
        weights="0" * 64,
        classes=("a", "b", "c", "d"),
        arch=arch,
        frames=frames_of(clip, None),
        picture=picture_of(clip, None),
        clip=clip,
        versions=Versions(stagedkd=""),
    )


def main() -> None:
    torch.set_num_threads(2)
    print(f"{'network':<20}{'clip':>14}{'onnx':>12}{'s':>6}{'openvino':>12}{'s':>6}")
    for name in sys.argv[1:] or FAMILIES:
        values, view = FAMILIES[name]
        arch, clip = TypeAdapter(Arch).validate_python(dict(values)), Clip.model_validate(dict(view))
        order = Order(card_of(arch, clip), partial(new, arch, clip))
        module = FramesToLogits(order.new_network().eval(), order.card).eval()
        dice = np.random.default_rng(0)
        batches = [dice.integers(0, 256, (count, *input_shape(order.card)), np.uint8) for count in (1, 2, 3, 5)]
        with torch.inference_mode():
            expected = [module(torch.from_numpy(frames)).numpy() for frames in batches]
        row = f"{name:<20}{f'{clip.frames}x{clip.size}':>14}"
        for form in (Onnx(), OpenVino()):
            started = time.monotonic()
            try:
                with tempfile.TemporaryDirectory() as folder:
                    form.write(order, Path(folder))
                    run = form.load(Path(folder), 2)
                    pairs = zip(batches, expected, strict=True)
                    found = [np.abs(run(x) - y).max() / np.abs(y).max() for x, y in pairs]
                row += f"{max(found):>12.1e}{time.monotonic() - started:>6.0f}"
            except StagedkdError as error:
                row += f"  {error.message[:60]}"
        print(row, flush=True)


def new(arch: Any, clip: Clip) -> Network:
    """The network, with the same weights at each call. BatchNorms have the statistics of a random batch, or else the
    logits of deep networks would be constant."""
    torch.manual_seed(0)
    network = build(arch, 4, root=Path())
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(2, 3, clip.frames, *sides(clip.size)))
    return network.eval()


if __name__ == "__main__":
    main()
