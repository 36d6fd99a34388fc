"""The network with its preprocessing, as one graph: uint8 frames in, logits out.

Shape legend: B clips, T frames, H, W pixels, 3 = RGB, N classes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stagedkd.deploy.export.lower import to_operators, to_values
from stagedkd.errors import TrainingError
from stagedkd.models.network import Network
from stagedkd.report.card import StudentCard
from stagedkd.spec.schema import sides


class FramesToLogits(nn.Module):
    """Takes frames, cropped and scaled to the size of the view: uint8 (B, T, H, W, 3), or float32 of the same shape
    with values 0..255 where a runtime has no bytes. Gives logits (B, N).

    Args:
        by_products: scale to the size of the network's own input by matrix products, for runtimes that lack antialiased
            scaling. The numbers are the same but for the last bits.
    """

    mean_3111: Tensor
    deviation_3111: Tensor
    rows_HH: Tensor
    columns_WW: Tensor

    def __init__(self, network: Network, card: StudentCard, by_products: bool = False) -> None:
        super().__init__()
        self.network = network
        taken, frames = card.frames.taken, card.frames.frames
        self.taken = None if taken == tuple(range(frames)) else taken
        self.scaled_to = card.picture.scaled_to
        self.by_products = by_products and self.scaled_to is not None
        if by_products and self.scaled_to is not None:
            (height, width), (tall, wide) = card.picture.size, self.scaled_to
            self.register_buffer("rows_HH", _scaling(height, tall))
            self.register_buffer("columns_WW", _scaling(width, wide).T.contiguous())
        self.register_buffer("mean_3111", torch.tensor(card.picture.mean)[:, None, None, None])
        self.register_buffer("deviation_3111", torch.tensor(card.picture.deviation)[:, None, None, None])

    def forward(self, frames: Tensor) -> Tensor:
        if self.taken is not None:
            frames = torch.stack([frames[:, i] for i in self.taken], dim=1)
        clip_B3THW = frames.permute(0, 4, 1, 2, 3).to(torch.float32) / 255
        if self.by_products:
            clip_B3THW = self.rows_HH @ clip_B3THW @ self.columns_WW
        elif self.scaled_to is not None:
            flat = clip_B3THW.transpose(1, 2).flatten(0, 1)
            flat = functional.interpolate(flat, list(self.scaled_to), mode="bilinear", antialias=True)
            clip_B3THW = flat.unflatten(0, (-1, frames.shape[1])).transpose(1, 2)
        return self.network((clip_B3THW - self.mean_3111) / self.deviation_3111)


def _scaling(length: int, wanted: int) -> Tensor:
    """The matrix (wanted, length) that scales a column of pixels: what torch makes of each single pixel."""
    pixels = torch.eye(length)[None, None]
    return functional.interpolate(pixels, (wanted, length), mode="bilinear", antialias=True)[0, 0]


def input_shape(card: StudentCard) -> tuple[int, int, int, int]:
    """The shape (T, H, W, 3) of one clip that the graph takes."""
    return card.clip.frames, *sides(card.clip.size), 3


def exported(
    network: Network,
    card: StudentCard,
    batch: int | None,
    dtype: torch.dtype = torch.uint8,
    *,
    operators: bool = False,
    by_products: bool = False,
) -> torch.export.ExportedProgram:
    """Export the graph. Its nodes keep no stack traces, which hold paths of this machine.

    Args:
        network: is changed. batch: the fixed number of clips; None: any. operators: a quantised network becomes bytes
            and the operators that ONNX knows; else plain arithmetic in float32. by_products: see `FramesToLogits`.
    Raises:
        TrainingError: torch cannot export the network.
    """
    network.to(memory_format=torch.contiguous_format).eval()
    if card.quantised and operators:
        to_operators(network, torch.zeros(2, *card.shape))
    elif card.quantised:
        to_values(network)
    module = FramesToLogits(network, card, by_products).eval()
    example = torch.zeros(batch or 2, *input_shape(card), dtype=dtype)  # an example batch of 1 would be fixed
    shapes: Any = {"frames": {0: torch.export.Dim("batch", min=1, max=1024)}} if batch is None else None
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        message = f"torch.export cannot take this network: {type(error).__name__}: {reason}"
        hint = "try --batch 1, or another form" if batch is None else "a network of your own must not branch on values"
        raise TrainingError(message, hint=hint) from error
    for part in (program.graph_module, *program.graph_module.modules()):
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program
