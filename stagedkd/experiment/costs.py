"""What the stages of a run take on this machine: as rehearsed, else guessed from FLOPs."""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from rich.filesize import decimal

from stagedkd.files import write_whole
from stagedkd.plan.graph import Plan, Plans, Stage
from stagedkd.plan.key import Key, digest
from stagedkd.plan.runtime import REHEARSALS, Runtime
from stagedkd.plan.work import NetworkWork
from stagedkd.spec.schema import Simulated
from stagedkd.store.maintenance import age_text

CPU_FLOPS, GPU_FLOPS = 1e10, 5e12  # a second, of one CPU thread and of one GPU: what small 3-D networks reach, roughly
VARIED = frozenset({"seed", "lr", "weight_decay", "weight"})  # fields that change what is learned, not what it takes


@dataclass(frozen=True)
class Estimate:
    """What a stage will take.

    Attributes:
        seconds: of the whole stage. steps: seconds of a step by phase, in later epochs.
        memory: peak in bytes: `resident` (of the process) and `device`.
        disk: bytes of its artifact. checkpoint: bytes of one checkpoint, which lies beside it until the stage ends.
        guessed: whether the seconds are a guess; nothing else is known then.
    """

    seconds: float
    steps: Mapping[str, float] = field(default_factory=dict[str, float])
    memory: Mapping[str, int] = field(default_factory=dict[str, int])
    disk: int = 0
    checkpoint: int = 0
    guessed: bool = False


@dataclass(frozen=True)
class Costs:
    """What a run will take: for each stage that the store lacks, by key, its estimate, and the stage that it was
    measured or guessed of; and the seconds of the whole run."""

    plans: Plans
    estimates: Mapping[Key, Estimate]
    alike: Mapping[Key, Stage]
    seconds: float

    @property
    def guessed(self) -> bool:
        """Whether some of it is a guess."""
        return any(each.guessed for each in self.estimates.values())

    @property
    def disk(self) -> int:
        """The bytes that the artifacts and the largest checkpoint will take."""
        found = self.estimates.values()
        return sum(each.disk for each in found) + max((each.checkpoint for each in found), default=0)

    @property
    def text(self) -> str:
        """What the run will take, in a sentence."""
        about = f"the run will take about {age_text(self.seconds)}"
        if self.guessed:
            return f"{about}, guessed from FLOPs; stagedkd rehearse measures it"
        most = max((estimate.memory.get("resident", 0) for estimate in self.estimates.values()), default=0)
        return f"{about}, {decimal(most)} of memory and {decimal(self.disk)} of disk, as rehearsed"

    def as_json(self) -> dict[str, Any]:
        """The costs as plain JSON values, by key."""
        stages = {key: asdict(estimate) for key, estimate in self.estimates.items()}
        return {"seconds": self.seconds, "disk": self.disk, "guessed": self.guessed, "stages": stages}


def costs_of(
    plans: Plans,
    lacking: Collection[Key],
    runtime: Runtime,
    clips: int = 0,
    measured: Mapping[Key, Estimate] = MappingProxyType({}),
) -> Costs:
    """Give what a run takes, from rehearsals of alike stages on this machine. If some stages that train were not
    rehearsed, all are guessed.

    Args:
        lacking: the stages that the store lacks. clips: the number of training clips, where the lock does not hold it.
        measured: what was rehearsed just now, which counts before what was kept.
    """
    alike, digests = alike_stages(plans, lacking), cost_digests(plans)
    machine = machine_of(runtime)
    known = {key: measured.get(key) or _read(_path(runtime, digests[key], machine)) for key in alike}
    found = {key: estimate for key, estimate in known.items() if estimate is not None}
    if any(key not in found and stage.work.trainings for key, stage in alike.items()):
        found = guesses(plans, alike, runtime, clips)
    return Costs(plans, found, alike, wall_seconds(plans, found, _jobs(runtime)))


def keep_costs(plans: Plans, measured: Mapping[Key, Estimate], runtime: Runtime) -> None:
    """Keep what was measured in a rehearsal, for later runs. Raises OSError: the cache cannot be written."""
    digests, machine = cost_digests(plans), machine_of(runtime)
    for key, estimate in measured.items():
        path = _path(runtime, digests[key], machine)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(estimate)))


def machine_of(runtime: Runtime) -> str:
    """A digest of the machine, the code and the settings that decide how long a stage takes."""
    import torch

    from stagedkd.stages.networks import device_of
    from stagedkd.stages.provenance import environment

    device = device_of(runtime.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    settings = [runtime.used_threads, runtime.gpus, runtime.compile, runtime.cache_teacher, runtime.bits]
    own = environment()
    return digest([device.type, name, own["cpu"], own["code"], torch.__version__, *settings])


def _path(runtime: Runtime, costs: str, machine: str) -> Path:
    return runtime.folder("cache") / REHEARSALS / f"{digest([costs, machine])[:32]}.json"


def _read(path: Path) -> Estimate | None:
    """Read what was kept; None if there is nothing, or if it is broken, which costs a rehearsal."""
    try:
        return Estimate(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _jobs(runtime: Runtime) -> int:
    return runtime.jobs if isinstance(runtime.jobs, int) else 1


def cost_digests(plans: Plans) -> dict[Key, str]:
    """For each stage, a digest of all that decides what it takes: its work without seeds and rates, and those above."""
    found: dict[Key, str] = {}
    for plan in plans.cells.values():
        for stage in plan.stages:
            if stage.identity not in found:
                above = {name: found[upstream.identity] for name, upstream in plan.inputs(stage).items()}
                found[stage.identity] = digest([stage.work.kind, _fixed(stage.work.model_dump(mode="json")), above])
    return found


def alike_stages(plans: Plans, lacking: Collection[Key]) -> dict[Key, Stage]:
    """For each stage that the store lacks, the first one that takes the same."""
    first: dict[str, Stage] = {}
    digests = cost_digests(plans)
    return {key: first.setdefault(digests[key], stage) for key, stage in plans.unique.items() if key in lacking}


def _fixed(value: object) -> object:
    """A work's values without those that vary."""
    if isinstance(value, dict):
        values = cast("dict[str, object]", value)
        return {name: _fixed(inner) for name, inner in values.items() if name not in VARIED}
    return [_fixed(inner) for inner in cast("list[object]", value)] if isinstance(value, list) else value


def guesses(plans: Plans, lacking: Collection[Key], runtime: Runtime, clips: int = 0) -> dict[Key, Estimate]:
    """Guess the seconds of the trainings among these stages from FLOPs: a forward and a backward pass are three forward
    passes. What does not train is not counted."""
    from stagedkd.experiment.preflight import preflight
    from stagedkd.stages.networks import device_of

    cpu = device_of(runtime.device).type == "cpu"
    rate = CPU_FLOPS * runtime.used_threads if cpu else GPU_FLOPS * runtime.gpus
    shapes, found = dict[str, Any](), dict[Key, Estimate]()
    for plan in plans.cells.values():
        trained = [stage for stage in plan.stages if stage.identity in lacking and stage.work.trainings]
        if all(stage.identity in found for stage in trained):
            continue
        networks = preflight(plan, Path(runtime.root), shapes).networks
        most = max((shape.flops for shape in networks.values()), default=0)
        for stage in trained:
            own = networks[stage.name].flops if stage.name in networks else most
            teacher = networks.get(stage.needs.get("teacher", ""))
            per_clip = 3 * own + (teacher.flops if teacher else 0)
            total = _clips(plan) or clips
            seen = stage.work.clips_seen(total) if isinstance(stage.work, NetworkWork) else total
            flops = stage.work.epochs_run * seen * per_clip
            found[stage.identity] = Estimate(flops / rate, guessed=True)
    return found


def _clips(plan: Plan) -> int:
    """About how many training clips a plan has; 0 if the lock lacks the data."""
    data = plan.spec.data
    if isinstance(data, Simulated):
        return data.train
    return sum(entry.clips for entry in plan.lock.data.values())


def wall_seconds(plans: Plans, estimates: Mapping[Key, Estimate], jobs: int) -> float:
    """The seconds of a run that makes `jobs` stages at once, in the order of the plans."""
    ended: dict[Key, float] = {}
    free = [0.0] * jobs
    for plan in plans.cells.values():
        for stage in plan.stages:
            if stage.identity in ended:
                continue
            ready = max((ended[above.identity] for above in plan.inputs(stage).values()), default=0.0)
            estimate = estimates.get(stage.identity)
            if estimate is None:
                ended[stage.identity] = ready
                continue
            begins = max(ready, heapq.heappop(free))
            ended[stage.identity] = begins + estimate.seconds
            heapq.heappush(free, ended[stage.identity])
    return max(ended.values(), default=0.0)
