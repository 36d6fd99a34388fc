"""Reading the losses of steps from the device: at most once a step, and behind what is queued.

Shape legend: S steps that are read together, L losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from stagedkd.errors import TrainingError


class NotFinite(TrainingError):
    """A loss is not finite. `index` counts its step, from 0, among the steps that were read together."""

    def __init__(self, name: str, value: float, index: int) -> None:
        super().__init__(f"loss '{name}' is {value}")
        self.index = index


class LossReader:
    """Reads the losses of every `every` steps at once.

    The copy to the host is queued behind the forward pass, and a read waits for this copy alone: what was queued after
    it, such as the backward pass, goes on. Nothing is lost by reading later: the losses of all steps are read.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.names: tuple[str, ...] = ()
        self.waiting: list[Tensor] = []  # of each step that was not sent yet: its losses (L,), on the device
        self.sent: tuple[Tensor, torch.cuda.Event | None] | None = None  # (S, L) on the host, complete after the event
        self.values: list[dict[str, float]] = []  # of each step that was read and not taken yet

    def add(self, parts: Mapping[str, Tensor], *, now: bool = False) -> None:
        """Add the losses of a step, which are scalars. `now`: they are read with this step."""
        self.names = tuple(parts)
        self.waiting.append(torch.stack(list(parts.values())).detach())
        if now or len(self.waiting) >= self.every:
            self._send()

    def _send(self) -> None:
        values_SL, self.waiting = torch.stack(self.waiting), []
        host_SL = values_SL.to("cpu", non_blocking=True, copy=True)  # pinned memory, if they are on a GPU
        event = None
        if values_SL.is_cuda:
            event = torch.cuda.Event()
            event.record()
        elif values_SL.device.type == "mps":
            torch.mps.synchronize()
        self.sent = host_SL, event

    def read(self, *, now: bool = False) -> None:
        """Read the losses that are due. `now`: all of them are.

        Raises:
            NotFinite: a loss is not finite.
        """
        if now and self.waiting:
            self._send()
        if self.sent is None:
            return
        (host_SL, event), self.sent = self.sent, None
        if event is not None:
            event.synchronize()
        rows = cast(list[list[float]], host_SL.tolist())  # pyright: ignore[reportUnknownMemberType]
        for index, row in enumerate(rows):
            for name, value in zip(self.names, row, strict=True):
                if not math.isfinite(value):
                    raise NotFinite(name, value, index)
        self.values += [dict(zip(self.names, row, strict=True)) for row in rows]

    def take(self) -> list[dict[str, float]]:
        """Return the losses by name of every step that was read since the last call, in order."""
        taken, self.values = self.values, []
        return taken
