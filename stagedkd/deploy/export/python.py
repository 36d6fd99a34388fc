"""A Python program for torch, numpy and PyAV, without stagedkd."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from stagedkd.deploy.export.pt2 import Pt2
from stagedkd.deploy.export.runtimes import Operators, Order, Run
from stagedkd.report.card import CARD


class Python:
    """student.py, which anybody can read, beside the network as student.pt2 and the card."""

    name: ClassVar[str] = "python"
    file: ClassVar[str] = "student.py"
    extra: ClassVar[str] = ""
    packages: ClassVar[Mapping[str, str]] = {"torch": "torch", "av": "av"}
    int8: ClassVar[bool] = False
    how: ClassVar[str] = "`python student.py video.mp4`; it needs torch, numpy and PyAV."

    def write(self, order: Order, folder: Path) -> Operators:
        Pt2().write(order, folder)
        (folder / CARD).write_text(order.card.text, "utf-8")
        program = files("stagedkd.deploy.export").joinpath("student_template.py").read_text("utf-8")
        (folder / self.file).write_text(program, "utf-8")
        return Operators()

    def load(self, folder: Path, threads: int) -> Run:
        return Pt2().load(folder, threads)
