"""Which outputs of frozen networks a hop keeps, and where: decided by its views, its losses, and the room there is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from stagedkd.models.network import POSITIONS
from stagedkd.models.shapes import NetworkShape
from stagedkd.plan.kind import PhaseWork
from stagedkd.plan.runtime import Runtime
from stagedkd.plan.work import DistillWork, NetworkWork
from stagedkd.spec.schema import Data, Simulated
from stagedkd.train.forms import forms_needed, pair_grids
from stagedkd.train.maps import LOGITS, Form
from stagedkd.train.phases import plan_forward

PART = 0.5  # of the free disk or memory that kept outputs may take
ELEMENT = 4  # bytes of a float32


@dataclass(frozen=True)
class PhaseKeeping:
    """What a phase keeps.

    Attributes:
        forms: the forms of the outputs of each guide, the teacher first. live: why the guides run in every step; "" if
            their outputs are kept or none is needed.
        prefix: the last of the student's frozen blocks whose output is kept. prefix_live: why they run in every step.
    """

    forms: tuple[tuple[Form, ...], ...]
    live: str = ""
    prefix: str | None = None
    prefix_live: str = ""


@dataclass(frozen=True)
class Keeping:
    """What a hop keeps, phase by phase, in `size` bytes at most, on the disk or in memory."""

    phases: tuple[PhaseKeeping, ...]
    size: int
    place: Literal["disk", "memory"] = "disk"

    @property
    def live(self) -> str:
        """Why the guides run in every step of some phases, or of all; "" if they never do."""
        return "; ".join(dict.fromkeys(phase.live for phase in self.phases if phase.live))

    @property
    def line(self) -> str:
        """What the hop keeps, in one line; "" if it has nothing to keep."""
        live = f"the guides run in every step: {self.live}" if self.live else ""
        if not self.size:
            return live
        place = "on the disk" if self.place == "disk" else "in memory"
        kept = f"the guides' outputs are kept {place}, up to {decimal(self.size)}"
        return f"{kept}; in some phases {live}" if live else kept

    def phase_lines(self, number: int) -> Iterator[str]:
        """What a phase keeps, in lines that add to `line`."""
        phase = self.phases[number]
        if any(phase.forms):
            texts = dict.fromkeys(form.text for forms in phase.forms for form in forms)
            yield f"keeps of the guides: {', '.join(texts)}"
        elif phase.live and self.size:
            yield f"runs the guides in every step: {phase.live}"
        if phase.prefix:
            yield f"keeps the output of the student's frozen blocks, up to {phase.prefix}"
        elif phase.prefix_live and phase.prefix_live != self.live:
            yield f"runs the student's frozen blocks in every step: {phase.prefix_live}"


def kept_views(data: Data, work: NetworkWork) -> int | None:
    """The number of views of a clip after which they come back; None if they never do, or if clips are mixed."""
    clip, augment = work.clip, work.augment
    if augment.mixup or augment.cutmix:
        return None
    drawn = augment.crop < 1 or augment.flip or augment.jitter or augment.hue
    return clip.views if drawn or not isinstance(data, Simulated) else 1  # a simulated clip has no other frames


def plan_keeping(
    work: DistillWork, data: Data, clips: int, shapes: Sequence[NetworkShape], classes: int, runtime: Runtime
) -> Keeping:
    """Plan what a hop keeps on this machine.

    Args:
        clips: number of training clips. shapes: the student's, the teacher's, then those of further guides.
    """
    views = kept_views(data, work) or 0
    reason = _reason(work, views, runtime)
    phases = tuple(_phase(work, phase, shapes, reason) for phase in work.phases)
    size = 0
    for number, shape in enumerate(shapes[1:]):
        for forms in forms_by_group(work, phases, number).values():
            size += clips * views * sum(_bytes(form, shape, classes) for form in forms)
    disk, memory = (int(PART * free) for free in (free_disk(runtime.folder("cache")), free_memory()))
    place: Literal["disk", "memory"] = "disk" if size <= disk else "memory"
    if place == "memory" and size > memory:
        room = f"{decimal(disk)} on the disk and {decimal(memory)} in memory"
        message = f"their outputs take up to {decimal(size)}, and half of what is free is {room}"
        phases, size = tuple(_live(phase, message) for phase in phases), 0
    reason = reason or ("a compiled network does not run in parts" if runtime.compile else "")
    prefixes = (_prefix(work, phase, views, clips, shapes[0], memory, reason) for phase in work.phases)
    phases = tuple(
        replace(phase, prefix=prefix, prefix_live=why) for phase, (prefix, why) in zip(phases, prefixes, strict=True)
    )
    return Keeping(phases, size, place)


def forms_by_group(
    work: DistillWork, phases: Sequence[PhaseKeeping], number: int
) -> dict[tuple[int, str], tuple[Form, ...]]:
    """The forms of a guide's outputs by batch size and precision, on which their last bits depend."""
    groups: dict[tuple[int, str], tuple[Form, ...]] = {}
    for phase, keeping in zip(work.phases, phases, strict=True):
        group = (phase.train.batch, phase.train.precision)
        groups[group] = tuple(dict.fromkeys((*groups.get(group, ()), *keeping.forms[number])))
    return {group: forms for group, forms in groups.items() if forms}


def _reason(work: DistillWork, views: int, runtime: Runtime) -> str:
    """Why this hop keeps nothing; "" if it may."""
    if runtime.cache_teacher == "off":
        return "runtime.cache_teacher is off"
    if work.augment.mixup or work.augment.cutmix:
        return "augment mixes clips, and mixed clips do not come back"
    if not views:
        return "views are endless; clip.views makes them finite"
    return "several processes train together" if runtime.gpus > 1 else ""


def _phase(work: DistillWork, phase: PhaseWork, shapes: Sequence[NetworkShape], reason: str) -> PhaseKeeping:
    """What a phase keeps of the guides if there is room."""
    plan = plan_forward(phase, work.cut, work.teacher_cut)
    archs = (work.teacher, *(guide.arch for guide in work.guides))
    none: tuple[tuple[Form, ...], ...] = ((),) * len(archs)
    if not plan.needs_teacher or all(arch.only_teaches for arch in archs):
        return PhaseKeeping(none)
    if live := reason or ("graft continues in the teacher" if phase.losses.graft else ""):
        return PhaseKeeping(none, live)
    grids = pair_grids(phase, work.pairing, (work.cut, work.teacher_cut), *shapes[:2]) if plan.student_taps else []
    forms = [forms_needed(phase, plan, shapes[1], work.teacher_cut, grids)]
    forms += [tuple(form for form in forms[0] if form.block in (LOGITS, POSITIONS)) for _ in work.guides]
    return PhaseKeeping(tuple(() if arch.only_teaches else own for arch, own in zip(archs, forms, strict=True)))


def _live(phase: PhaseKeeping, reason: str) -> PhaseKeeping:
    return replace(phase, forms=((),) * len(phase.forms), live=reason) if any(phase.forms) else phase


def _prefix(
    work: DistillWork, phase: PhaseWork, views: int, clips: int, student: NetworkShape, memory: int, reason: str
) -> tuple[str | None, str]:
    """The last of the student's frozen blocks in front of all that a phase trains or taps, if its output is kept; and
    why it is not, if there is such a block."""
    first = min(phase.trained, default=len(work.cut))
    if not work.cut or first == 0:
        return None, ""
    plan, block = plan_forward(phase, work.cut, work.teacher_cut), work.cut[first - 1][-1]
    if reason or plan.exits or min(plan.student_taps, default=first) < first or not student.from_maps:
        return None, reason or "losses or the next block need more than their last map"
    if phase.run_epochs <= views:
        return None, f"the phase has no more epochs than views ({views})"
    size = clips * views * _bytes(Form(block), student, 0)
    if size > memory:
        return None, f"it takes {decimal(size)}, and half of the free memory is {decimal(memory)}"
    return block, ""


def _bytes(form: Form, network: NetworkShape, classes: int) -> int:
    """The bytes of one clip in a form."""
    return ELEMENT * form.elements(network, classes)


def free_disk(folder: Path) -> int:
    """The free bytes of the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free


def free_memory() -> int:
    """The bytes of memory that processes can still get; 0 if the system does not tell."""
    path = Path("/proc/meminfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    available = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(next(available, "0"))
