"""Outputs of frozen networks that are kept, so that a clip that comes back in the same view is not run again.

Kept outputs must equal live ones bit for bit, or nothing is kept: `Kept` proves that on the first batch. They are
filled in the batches of the training, since a batch of another size may give other last bits. What is kept of a clip
in a view has a slot (`Batch.slots`).

Shape legend: B clips of a batch, S slots.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.mix import Batch
from stagedkd.models.network import EMBEDDING, POSITIONS
from stagedkd.spec.schema import Input
from stagedkd.train.guides import Forward, Guide, GuideOutputs, LiveGuide
from stagedkd.train.maps import LOGITS, Form, Grid, KeptMap, TeacherMap

Slots: TypeAlias = npt.NDArray[np.int64]


class KeptRows:
    """One tensor a slot, in memory or in a mapped file. `sums` holds the checksum of each row; 0: nothing is kept. A
    row is compared with its checksum when it is first read, and one that differs counts as missing."""

    def __init__(
        self, values: npt.NDArray[np.uint8], sums: npt.NDArray[np.uint32], shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        """
        Args:
            values: (S, bytes of a row). sums: (S,). shape, dtype: of the tensor of one clip.
        """
        self.values, self.sums, self.shape, self.dtype = values, sums, tuple(shape), dtype
        self.checked = np.zeros(len(sums), np.bool_)

    @classmethod
    def in_memory(cls, slots: int, shape: Sequence[int], dtype: torch.dtype) -> KeptRows:
        """Rows in memory, of which none is kept yet."""
        return cls(np.zeros((slots, row_bytes(shape, dtype)), np.uint8), np.zeros(slots, np.uint32), shape, dtype)

    def kept(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of these slots have a sound row, (len(slots),)."""
        for slot in np.unique(slots[(self.sums[slots] != 0) & ~self.checked[slots]]):
            if _checksum(self.values[slot]) == self.sums[slot]:
                self.checked[slot] = True
            else:
                self.sums[slot] = 0
        return self.sums[slots] != 0

    def take(self, slots: Slots) -> Tensor:
        """Return the rows of slots that are kept, (len(slots), ...), on the CPU."""
        flat = torch.from_numpy(np.ascontiguousarray(self.values[slots]).reshape(-1))
        return flat.view(self.dtype).reshape(len(slots), *self.shape)

    def put(self, slots: Slots, rows_B: Tensor) -> None:
        """Keep the rows of the slots that have none yet. The checksum is written last, so that a row that a killed
        process left half-written is missing."""
        missing, first = np.unique(slots, return_index=True)
        lacking = ~self.kept(missing)
        packed = rows_B.detach().cpu().contiguous().view(len(slots), -1).view(torch.uint8).numpy()
        for slot, row in zip(missing[lacking], packed[first[lacking]], strict=True):
            self.values[slot] = row
            self.sums[slot] = _checksum(row)
            self.checked[slot] = True


def row_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """The bytes of one row."""
    return prod(shape) * dtype.itemsize


def _checksum(row: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(row.tobytes()) or 1


OpenRows: TypeAlias = Callable[[Form, Sequence[int], torch.dtype], KeptRows]


class Kept:
    """The outputs of a frozen network, by form and slot.

    Before anything is kept, the network must prove on a batch that what it gives for a clip depends neither on the
    clip's place in the batch nor on the other clips, and that it draws no random numbers. What is in a file already
    must equal what the network gives now. If one of these fails, `refusal` says so, and nothing is kept.
    """

    def __init__(
        self, compute: Callable[[Batch], Mapping[Form, Tensor]], open_rows: OpenRows, note: Callable[[str], None]
    ) -> None:
        """
        Args:
            compute: runs the network and gives its outputs (B, ...) by form.
            open_rows: gives the rows of a form, for the shape and the type of one clip. note: told of a refusal.
        """
        self.compute, self.open_rows, self.note = compute, open_rows, note
        self.rows: dict[Form, KeptRows] = {}
        self.layouts: dict[Form, tuple[int, ...]] = {}  # strides: kernels choose their order of summation by them
        self.refusal = ""

    def refuse(self, reason: str) -> None:
        """Keep nothing from now on."""
        self.refusal = reason
        self.note(reason)

    def get(self, batch: Batch, forms: Sequence[Form]) -> dict[Form, Tensor] | None:
        """Give the outputs for a batch in some forms, kept ones or fresh ones, which are then kept; None if refused."""
        assert batch.slots is not None
        if not self.layouts and not self.refusal:
            self._prove(batch, batch.slots)
        if self.refusal:
            return None
        if all(self.rows[form].kept(batch.slots).all() for form in forms):
            device = batch.clip_B3THW.device
            return {form: _laid_out(self.rows[form].take(batch.slots), self.layouts[form], device) for form in forms}
        fresh = self._fresh(batch)
        for form, tensor_B in fresh.items():
            self.rows[form].put(batch.slots, tensor_B)
        return {form: fresh[form] for form in forms}

    def _fresh(self, batch: Batch) -> Mapping[Form, Tensor]:
        with torch.no_grad():
            return self.compute(batch)

    def _prove(self, batch: Batch, slots: Slots) -> None:
        with without_draws(batch.clip_B3THW.device) as drew:
            fresh = self._fresh(batch)
            if drew():
                self.refuse("the network draws random numbers")
                return
            order = _rearranged(len(slots))
            again = self._fresh(replace(batch, clip_B3THW=batch.clip_B3THW[order]))
        if not all(torch.equal(again[form], tensor_B[order]) for form, tensor_B in fresh.items()):
            self.refuse("what the network gives for a clip depends on the other clips of the batch")
            return
        for form, tensor_B in fresh.items():
            rows = self.rows[form] = self.open_rows(form, tensor_B.shape[1:], tensor_B.dtype)
            at = np.flatnonzero(rows.kept(slots))
            if not torch.equal(rows.take(slots[at]), tensor_B[torch.from_numpy(at)].cpu()):
                self.refuse("what was kept before differs from what the network gives on this machine")
                return
            rows.put(slots, tensor_B)
        self.layouts = {form: tensor_B.stride() for form, tensor_B in fresh.items()}


def _rearranged(count: int) -> Tensor:
    """A selection of `count` clips of a batch: the first half of them backwards, twice. So every place holds another
    clip than in the batch, every clip has other neighbours, and half of the clips are gone."""
    half = torch.arange(-(-count // 2)).flip(0)
    return torch.cat([half, half])[:count]


def _laid_out(rows_B: Tensor, strides: tuple[int, ...], device: torch.device) -> Tensor:
    """Move rows to the device, in the layout that the network gave them."""
    if rows_B.stride() == strides:
        return rows_B.to(device)
    return torch.empty_strided(rows_B.shape, strides, dtype=rows_B.dtype, device=device).copy_(rows_B)


@contextmanager
def without_draws(device: torch.device) -> Generator[Callable[[], bool]]:
    """Inside, random numbers may be drawn without any effect outside. Gives a function that tells if one was drawn."""
    cuda = device.type == "cuda"

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if cuda else [])]

    with torch.random.fork_rng([device] if cuda else []):
        before = states()
        yield lambda: not all(map(torch.equal, before, states()))


class KeptGuide:
    """A live guide whose outputs are kept, for one phase. `forms` are what the losses of the phase need."""

    def __init__(
        self, live: LiveGuide, kept: Kept, forms: Sequence[Form], grids: Mapping[str, Grid], *, compiled: bool
    ) -> None:
        """
        Args:
            kept: the outputs of this guide, shared with other phases of the same batch size and precision.
            grids: the grid of the whole map behind each block. compiled: the guide is another program for each phase,
                whose outputs are compared once. Without, a shorter run is the beginning of a longer one.
        """
        self.live, self.kept, self.forms, self.grids = live, kept, tuple(forms), grids
        self.proven = not compiled

    @property
    def weight(self) -> float:
        return self.live.weight

    def outputs(self, batch: Batch, maps: Sequence[str], logits: bool) -> GuideOutputs:
        outputs = None if batch.slots is None else self.kept.get(batch, self.forms)
        if outputs is not None and not self.proven:
            self._prove(batch, maps, logits, outputs)
        if outputs is None or self.kept.refusal:
            return self.live.outputs(batch, maps, logits)
        by_block: dict[str, dict[Form, Tensor]] = {}
        for form, tensor_B in outputs.items():
            by_block.setdefault(form.block, {})[form] = tensor_B
        kept_maps: dict[str, TeacherMap] = {
            block: forms[Form(block)] if block in (EMBEDDING, POSITIONS) else KeptMap(self.grids[block], forms)
            for block, forms in by_block.items()
            if block in maps
        }
        return GuideOutputs(kept_maps, outputs.get(Form(LOGITS)) if logits else None)

    def _prove(self, batch: Batch, maps: Sequence[str], logits: bool, outputs: Mapping[Form, Tensor]) -> None:
        """Compare kept outputs with those of a network that runs only as far as this phase needs."""
        self.proven = True
        with without_draws(batch.clip_B3THW.device):
            live = forms_of(self.live.outputs(batch, maps, logits), self.forms)
        if not all(torch.equal(tensor_B, outputs[form]) for form, tensor_B in live.items()):
            self.kept.refuse("the network gives other outputs when it runs only as far as a phase needs")


def forms_of(outputs: GuideOutputs, forms: Sequence[Form]) -> dict[Form, Tensor]:
    """Bring a live guide's outputs into forms, as far as it gave them."""
    given: dict[str, TeacherMap] = dict(outputs.maps)
    if outputs.logits is not None:
        given[LOGITS] = outputs.logits
    tensors: dict[Form, Tensor] = {}
    for form in forms:
        if isinstance(tensor_B := given.get(form.block), Tensor):
            tensors[form] = form.of(tensor_B)
    return tensors


def computing(guide: LiveGuide, forms: Sequence[Form]) -> Callable[[Batch], Mapping[Form, Tensor]]:
    """A function that runs a guide as far as some forms need, and gives its outputs in these."""
    blocks = tuple(dict.fromkeys(form.block for form in forms))
    logits = LOGITS in blocks or POSITIONS in blocks  # the logits of positions come with the head
    maps = tuple(block for block in blocks if block != LOGITS)
    return lambda batch: forms_of(guide.outputs(batch, maps, logits), forms)


class KeptPrefix:
    """The map behind the student's frozen blocks, kept in memory for one phase. `block` is the last of them."""

    def __init__(self, run: Forward, network_input: Input | None, block: str, slots: int, note: Callable[[str], None]):
        self.block, self.form = block, Form(block)

        def compute(batch: Batch) -> Mapping[Form, Tensor]:
            maps, _ = run(batch.view(network_input), upto=block, taps=(block,), head=False)
            return {self.form: maps[block]}

        def open_rows(form: Form, shape: Sequence[int], dtype: torch.dtype) -> KeptRows:
            return KeptRows.in_memory(slots, shape, dtype)

        self.kept = Kept(compute, open_rows, lambda reason: note(f"the student's frozen blocks run live: {reason}"))

    def output(self, batch: Batch) -> Tensor | None:
        """Give the map (B, C, T, H, W) for a batch; None if it must run live."""
        outputs = None if batch.slots is None else self.kept.get(batch, (self.form,))
        return None if outputs is None else outputs[self.form]


@dataclass(frozen=True)
class KeptPhase:
    """What is kept in a phase: its guides, kept or live; and the last block of the student's frozen prefix if its
    output is kept."""

    guides: tuple[Guide, ...]
    prefix: str | None = None
