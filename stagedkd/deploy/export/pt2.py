"""A program of torch.export, for Python with torch alone or for C++ by AOTInductor."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from stagedkd.deploy.export.graph import exported
from stagedkd.deploy.export.runtimes import Clips, Operators, Order, Run


class Pt2:
    """A .pt2 file. It loads in the version of torch that wrote it and in later ones, as a rule not in earlier ones."""

    name: ClassVar[str] = "pt2"
    file: ClassVar[str] = "student.pt2"
    extra: ClassVar[str] = ""
    packages: ClassVar[Mapping[str, str]] = {"torch": "torch"}
    int8: ClassVar[bool] = False
    how: ClassVar[str] = (
        "`torch.export.load(...).module()` takes uint8 (clips, frames, height, width, 3) RGB and gives logits."
    )

    def write(self, order: Order, folder: Path) -> Operators:
        program = exported(order.new_network(), order.card, order.batch)
        torch.export.save(program, folder / self.file, extra_files={"student.json": order.card.text})
        return Operators()

    def load(self, folder: Path, threads: int) -> Run:
        module = torch.export.load(folder / self.file).module()

        def run(clips: Clips) -> object:
            with torch.inference_mode():
                return module(torch.from_numpy(clips)).numpy()

        return run  # pyright: ignore[reportReturnType]
