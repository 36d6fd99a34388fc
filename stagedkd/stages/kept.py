"""The kept outputs of a hop's guides: side products in the cache folder, one file for each form, under content keys.

A file is a safetensors file of the tensors `clip` (S,), `sums` (S,) and the rows (S, ...), which are named `logits` or
`map`; slot s holds the clip `clip[s]` in the view s mod V of V. It is mapped into memory and filled row by row: a row
without its checksum in `sums` is missing. Any of these files can be deleted at any time.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stagedkd.files import locked, replacing
from stagedkd.models.shapes import NetworkShape
from stagedkd.plan.cpus import chosen_instructions
from stagedkd.plan.key import digest
from stagedkd.plan.runtime import KEPT_OUTPUTS
from stagedkd.plan.work import DistillWork
from stagedkd.stages.context import Context
from stagedkd.stages.keeping import Keeping, forms_by_group
from stagedkd.stages.provenance import caches, cpu
from stagedkd.train.feed import Feed
from stagedkd.train.guides import Guide, LiveGuide
from stagedkd.train.kept import Kept, KeptGuide, KeptPhase, KeptRows, OpenRows, computing, row_bytes
from stagedkd.train.maps import LOGITS, Form, Grid

VERSION = 1  # is raised when rows have another meaning, or forms are computed in another way
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class _Owner:
    """What kept outputs are of: a guide of a hop, by the name of its input, on the clips of a training."""

    context: Context
    work: DistillWork
    name: str
    guide: LiveGuide
    feed: Feed
    device: torch.device

    def refused(self, reason: str) -> None:
        """Tell the user that nothing is kept."""
        self.context.listener.note(f"{self.context.stage.name}: the {self.name} runs in every step: {reason}")

    def key_parts(self, group: tuple[int, str]) -> list[object]:
        """All that the bits of the outputs depend on: the network, the clips and their views, the batch size and the
        precision (`group`); and what decides about last bits on a machine."""
        inputs, work, device = self.context.inputs, self.work, self.device
        clips = hashlib.sha256(np.ascontiguousarray(self.feed.clip_ids).tobytes()).hexdigest()
        drawn = [work.clip, work.augment, None if work.clip.views is None else self.feed.seed]
        chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()
        kernels = [torch.backends.cpu.get_cpu_capability(), caches(), chosen_instructions(), torch.get_num_threads()]
        versions = [VERSION, torch.__version__, self.context.runtime.compile]
        keys = [inputs[self.name].manifest.key, inputs["data"].manifest.key]
        return [*versions, *keys, clips, *drawn, self.guide.input, *group, device.type, chip, *kernels]

    def opening(self, group: tuple[int, str], *, in_memory: bool) -> OpenRows:
        """A function that opens the rows of a form."""
        note, key = self.context.listener.note, self.key_parts(group)
        rehearsed = self.context.rehearsals is not None  # its networks have learned nothing: others must not read this
        folder = (self.context.workspace.scratch if rehearsed else self.context.runtime.folder("cache")) / KEPT_OUTPUTS
        clips = np.repeat(self.feed.clip_ids, self.feed.kept_views or 0)

        def open_rows(form: Form, shape: Sequence[int], dtype: torch.dtype) -> KeptRows:
            if in_memory or dtype not in TYPES:
                return KeptRows.in_memory(len(clips), shape, dtype)
            own = digest([*key, form.block, form.grid, form.samples, form.cells, list(shape), TYPES[dtype]])
            path, name = folder / f"{own[:32]}.safetensors", "logits" if form.block == LOGITS else "map"
            try:
                return open_file(path, own, clips, name, shape, dtype)
            except OSError as error:
                note(f"{self.context.stage.name}: {path}: {error}; these outputs are kept in memory instead")
                return KeptRows.in_memory(len(clips), shape, dtype)

        return open_rows


def kept_phases(
    context: Context,
    work: DistillWork,
    keeping: Keeping,
    guides: Sequence[Guide],
    feed: Feed,
    teachers: Sequence[NetworkShape],
    device: torch.device,
) -> tuple[KeptPhase, ...]:
    """Set up what the phases of a hop keep. `guides` are live ones or tables, `teachers` their shapes, the teacher
    first."""
    rows: list[list[Guide]] = [[] for _ in work.phases]
    for number, (name, guide, shape) in enumerate(zip(("teacher", *work.guide_inputs), guides, teachers, strict=True)):
        kept: dict[tuple[int, str], Kept] = {}
        if isinstance(guide, LiveGuide):
            owner = _Owner(context, work, name, guide, feed, device)
            for group, forms in forms_by_group(work, keeping.phases, number).items():
                opening = owner.opening(group, in_memory=keeping.place == "memory")
                kept[group] = Kept(computing(guide, forms), opening, owner.refused)
        grids: dict[str, Grid] = {block: (feat[1], feat[2], feat[3]) for block, feat in shape.maps.items()}
        for row, phase, planned in zip(rows, work.phases, keeping.phases, strict=True):
            forms = planned.forms[number]
            if not forms or not isinstance(guide, LiveGuide):
                row.append(guide)
                continue
            own = kept[phase.train.batch, phase.train.precision]
            row.append(KeptGuide(guide, own, forms, grids, compiled=context.runtime.compile))
    return tuple(KeptPhase(tuple(row), plan.prefix) for row, plan in zip(rows, keeping.phases, strict=True))


def open_file(
    path: Path, key: str, clips: npt.NDArray[np.int64], name: str, shape: Sequence[int], dtype: torch.dtype
) -> KeptRows:
    """Map a file of kept rows; make it first if it does not exist, is cut, or has another key.

    Args:
        clips: the clip of each slot (S,). name: of the tensor of the rows. shape, dtype: of the tensor of one clip.
    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    slots, size, at = len(clips), row_bytes(shape, dtype), 12 * len(clips)
    tensors = {
        "clip": {"dtype": "I64", "shape": [slots], "data_offsets": [0, 8 * slots]},
        "sums": {"dtype": "U32", "shape": [slots], "data_offsets": [8 * slots, at]},
        name: {"dtype": TYPES[dtype], "shape": [slots, *shape], "data_offsets": [at, at + slots * size]},
    }
    header = json.dumps({"__metadata__": {"stagedkd": key}, **tensors}).encode()
    header += b" " * (-(8 + len(header)) % 64)
    head = len(header).to_bytes(8, "little") + header
    total = len(head) + at + slots * size
    with locked(path.with_suffix(".lock")):
        if not _is_whole(path, head, total):
            with replacing(path) as temporary, temporary.open("wb") as stream:
                stream.write(head + np.ascontiguousarray(clips, "<i8").tobytes())
                stream.flush()
                _allocate(stream.fileno(), total)
    sums = np.memmap(path, np.uint32, "r+", len(head) + 8 * slots, (slots,))
    return KeptRows(np.memmap(path, np.uint8, "r+", len(head) + at, (slots, size)), sums, shape, dtype)


def _is_whole(path: Path, head: bytes, total: int) -> bool:
    """Whether a file has this header and this size."""
    if not path.is_file() or path.stat().st_size != total:
        return False
    with path.open("rb") as stream:
        return stream.read(len(head)) == head


def _allocate(descriptor: int, total: int) -> None:
    """Give a file its size. Its blocks are reserved, since a full disk kills a process that writes to a mapped hole."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, total)
    else:
        os.truncate(descriptor, total)
