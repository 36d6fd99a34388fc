"""Core ML, whose runtime is on macOS alone."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportAttributeAccessIssue=false
# The package is an extra, without type stubs.
from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from stagedkd.deploy.export.graph import exported
from stagedkd.deploy.export.runtimes import Clips, Operators, Order, Run
from stagedkd.models.network import Network


class CoreMl:
    """An .mlpackage, whose input are frames as float32 with values 0..255: Core ML has no arrays of bytes."""

    name: ClassVar[str] = "coreml"
    file: ClassVar[str] = "student.mlpackage"
    extra: ClassVar[str] = "coreml"
    packages: ClassVar[Mapping[str, str]] = {"coremltools": "coremltools"}
    int8: ClassVar[bool] = False
    how: ClassVar[str] = "float32 (clip, frames, height, width, 3) with values 0..255, to `logits`."

    def write(self, order: Order, folder: Path) -> Operators:
        import coremltools

        network = order.new_network()
        _plain_pooling(network)
        program = exported(network, order.card, order.batch or 1, torch.float32, by_products=True)
        program = program.run_decompositions({})
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # its progress bars
            warnings.simplefilter("ignore")
            model: Any = coremltools.convert(
                program,
                outputs=[coremltools.TensorType("logits")],
                minimum_deployment_target=coremltools.target.iOS17,
                compute_precision=coremltools.precision.FLOAT32,
            )
        model.user_defined_metadata["student.json"] = order.card.text
        model.save(str(folder / self.file))
        return Operators()

    def load(self, folder: Path, threads: int) -> Run | None:
        if sys.platform != "darwin":
            return None
        import coremltools

        model = coremltools.models.MLModel(str(folder / self.file))
        (name,) = (entry.name for entry in model.get_spec().description.input)

        def run(clips: Clips) -> Any:
            rows = [model.predict({name: clip[None].astype(np.float32)})["logits"] for clip in clips]
            return np.concatenate(rows)

        return run


class _Mean(nn.Module):
    """The mean over all positions, which Core ML knows; it knows no adaptive pooling in three dimensions."""

    def forward(self, feat_BCTHW: Tensor) -> Tensor:
        return feat_BCTHW.mean((2, 3, 4), keepdim=True)


def _plain_pooling(network: Network) -> None:
    """Replace adaptive pooling to one position by the mean, which is the same number."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool3d) and set(_sizes(child.output_size)) == {1}:
                setattr(module, name, _Mean())


def _sizes(size: Any) -> tuple[int, ...]:
    return (size,) if isinstance(size, int) else tuple(size)
