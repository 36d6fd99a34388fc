"""The loop: phases, epochs, steps; schedule, EMA, checkpoints, events.

A run is a pure function of its job on one kind of device, thread count and compile flag; a resumed run gives the same
bits as an uninterrupted one on the CPU.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stagedkd.data.mix import Batch
from stagedkd.errors import Interrupted, TrainingError
from stagedkd.models.network import Network
from stagedkd.plan.work import Cut, PhaseWork
from stagedkd.spec.schema import Input, Train
from stagedkd.train import checkpoint
from stagedkd.train.bridge import Bridge
from stagedkd.train.correlation import Probe, correlation
from stagedkd.train.events import EventLog
from stagedkd.train.feed import Feed
from stagedkd.train.phases import Route, optimizer, route, set_modes
from stagedkd.train.ranks import Ranks, refuse_batch_statistics, synchronised
from stagedkd.train.schedule import learning_rate, loss_weight
from stagedkd.train.step import Pieces, sound_backend, train_step
from stagedkd.train.terms import Cast, Hop, Moment, OwnLoss, Seen


@dataclass(frozen=True)
class Job:
    """One training: the networks (on the device, initialised), the phases, the clips, and how to run. `guides` are the
    networks that stand still, the teacher first; `inputs` what the student and they make of the shared view. `probe` is
    there where phases want the correlation of substages. `ranks` are the processes that share this training."""

    student: Network
    bridge: Bridge
    guides: tuple[Network, ...]
    cut: Cut
    teacher_cut: Cut
    phases: tuple[PhaseWork, ...]
    feed: Feed
    inputs: tuple[Input | None, ...]
    device: torch.device
    scratch: Path
    events: EventLog
    hop: Hop = field(default_factory=Hop)
    shares: tuple[float, ...] = (1.0,)
    own: Mapping[str, OwnLoss] = field(default_factory=dict[str, OwnLoss])
    normalize: bool = False
    probe: Probe | None = None
    compile: bool = False
    checkpoint_seconds: float = 5.0
    interrupted: Callable[[], int | None] = lambda: None
    on_step: Callable[[dict[str, Any]], None] = lambda _: None
    ranks: Ranks = field(default_factory=Ranks)


@dataclass
class Progress:
    """Where a run stands. `step` counts in the phase, `total` over all; `sums` are this epoch's sums of losses;
    `waited` are those of the seconds that went into batches; `rho` is the last measured correlation of substages,
    `scales` the sum and count of each loss over the phase's first epoch."""

    phase: int = 0
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict[str, float])
    summed: int = 0
    last: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    rho: list[list[float]] | None = None
    scales: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


def fit(job: Job) -> Progress:
    """Train `job.student` in place (the averaged weights, where the last phase has `ema`).

    Raises:
        TrainingError: a loss is not finite, no memory, no space. The last checkpoint stays. Of several ranks: a
            BatchNorm on the CPU would see a share of the batch only.
        Interrupted: a signal came; a checkpoint of this very step is there.
    """
    run = _Run(job)
    run.share()
    run.resume()
    while run.at.phase < len(job.phases):
        run.phase()
        run.at.phase, run.at.step = run.at.phase + 1, 0
    if run.average is not None and job.phases[-1].train.ema:
        job.student.load_state_dict(run.average.state_dict())
    return run.at


class _Run:
    def __init__(self, job: Job) -> None:
        self.job, self.at = job, Progress()
        self.average: Network | None = None
        self.saved: dict[str, Any] | None = None
        self.since = time.monotonic()

    def share(self) -> None:
        """Make the ranks one: the same weights everywhere, and no BatchNorm that sees a share of the batch only."""
        job = self.job
        if job.ranks.count == 1:
            return
        synchronised(job.student, job.device, job.ranks)
        for phase in job.phases:
            set_modes(job.student, job.bridge, phase, job.cut)
            refuse_batch_statistics(job.student, job.ranks, f"phase {phase.name}")
        for guide in job.guides:
            refuse_batch_statistics(guide, job.ranks, "a network that guides")
        job.ranks.share_states(job.student, job.bridge)

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        self.saved = checkpoint.load(self.job.scratch)
        if self.saved is None:
            self.job.events.truncate(0)
            return
        job, saved = self.job, self.saved
        self.at = Progress(**saved["at"])
        job.student.load_state_dict(saved["student"])
        job.bridge.load_state_dict(saved["bridge"])
        if saved["average"] is not None:
            self.average = copy.deepcopy(job.student)
            self.average.load_state_dict(saved["average"])
        checkpoint.set_rng_state(saved["rng"], job.device)
        job.events.truncate(saved["events"])
        job.events.write("resumed", phase=job.phases[self.at.phase].name, step=self.at.step)

    def phase(self) -> None:
        """Train one phase from `at.step` to its end."""
        job, at = self.job, self.at
        phase = job.phases[at.phase]
        set_modes(job.student, job.bridge, phase, job.cut)
        if at.step == 0:
            self.average = None  # like the schedule, the average restarts with each phase
            at.scales = {}
        update = optimizer(job.student, job.bridge, phase)
        scaler = torch.amp.GradScaler(job.device.type, enabled=phase.train.precision == "fp16")
        if self.saved is not None:
            update.load_state_dict(self.saved["optimizer"])
            scaler.load_state_dict(self.saved["scaler"])
            self.saved = None
        parameters = [p for group in update.param_groups for p in group["params"]]
        pieces = Pieces(self._cast(), parameters, update, scaler)
        path, steps = route(phase, job.cut, job.teacher_cut), job.feed.steps(phase)
        with sound_backend(job.device, phase.train.precision):
            self._steps(phase, pieces, path, steps)

    def _steps(self, phase: PhaseWork, pieces: Pieces, path: Route, steps: int) -> None:
        job, at = self.job, self.at
        batches = job.feed.batches(phase, at.phase, at.step, job.device, job.ranks)
        with closing(batches):
            self._all(phase, pieces, path, steps, batches)

    def _all(
        self, phase: PhaseWork, pieces: Pieces, path: Route, steps: int, batches: Iterator[tuple[Batch, float]]
    ) -> None:
        at, update, scaler = self.at, pieces.optimizer, pieces.scaler
        while at.step < phase.run_epochs * steps:
            if phase.pairs and self.job.probe is not None and (at.step % steps == 0 or at.rho is None):
                self._measure(self.job.probe)
            rate = learning_rate(phase.train, at.step, phase.epochs * steps, steps)
            for group in update.param_groups:
                group["lr"] = rate
            started = time.monotonic()
            try:
                batch, waited = next(batches)
                values = train_step(pieces, phase, path, batch, self._moment(steps), partial(self._weigh, phase, steps))
            except TrainingError as error:
                raise TrainingError(f"{error.message} at {self._where(phase, steps)}", hint=_nan_hint()) from None
            except torch.OutOfMemoryError:
                hint = "lower train.batch or clip.size, or set train.precision: bf16"
                raise TrainingError(f"out of memory at {self._where(phase, steps)}", hint=hint) from None
            self._average(phase.train)
            at.seconds, at.waited = at.seconds + time.monotonic() - started, at.waited + waited
            self._count(phase, steps, values, rate)
            self._keep(update, scaler, epoch_ends=at.step % steps == 0)

    def _cast(self) -> Cast:
        """Who takes part, compiled anew for each phase: what it trains and runs is another graph."""
        job = self.job
        if job.compile:
            torch.compiler.reset()
        runs = [network.run for network in (job.student, *job.guides)]
        student, *guides = [torch.compile(run) for run in runs] if job.compile else runs
        seen = tuple(
            Seen(run, made, share) for run, made, share in zip(guides, job.inputs[1:], job.shares, strict=True)
        )
        return Cast(Seen(student, job.inputs[0]), seen, job.bridge, job.device, job.hop, job.own, job.ranks)

    def _measure(self, probe: Probe) -> None:
        """Refresh the correlation of substages."""
        rho = correlation(self.job.student, self.job.guides[0], (self.job.cut, self.job.teacher_cut), probe)
        self.at.rho = self.job.ranks.shared(rho).tolist()

    def _moment(self, steps: int) -> Moment:
        at = self.at
        rho_KM = torch.tensor(at.rho, device=self.job.device) if at.rho is not None else None
        return Moment(at.phase, at.step / steps, at.total, rho_KM)

    def _weigh(self, phase: PhaseWork, steps: int, values: Mapping[str, float]) -> dict[str, float]:
        """The factor of each loss now: its scheduled weight, over its mean of the first epoch where that is asked."""
        at, named = self.at, phase.losses.named()
        factors = {name: loss_weight(named[name], at.step / steps, phase.epochs) for name in values}
        if not self.job.normalize:
            return factors
        for name, value in values.items():
            total, count = at.scales.get(name, [0.0, 0.0])
            if value and count < steps:  # a loss that begins at zero has its first epoch when it is there
                at.scales[name] = [total + abs(value), count + 1]
        means = {name: total / count for name, (total, count) in at.scales.items()}
        return {name: factor / means.get(name, 1.0) for name, factor in factors.items()}

    def _where(self, phase: PhaseWork, steps: int) -> str:
        return f"phase {phase.name}, epoch {self.at.step // steps + 1}, step {self.at.step + 1}"

    def _count(self, phase: PhaseWork, steps: int, values: dict[str, float], rate: float) -> None:
        at = self.at
        at.step, at.total, at.summed = at.step + 1, at.total + 1, at.summed + 1
        for name, value in values.items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        means = {name: value / at.summed for name, value in at.sums.items()}
        epoch = (at.step - 1) // steps + 1
        row = {
            "phase": phase.name,
            "epoch": epoch,
            "epochs": phase.run_epochs,
            "step": at.total,
            "lr": rate,
            "losses": means,
        }
        row["clips_per_s"] = at.total * phase.train.batch / max(at.seconds, 1e-9)
        self.job.on_step({**row, "done": at.total / max(1, self._all_steps()), "seconds": at.seconds})
        if at.step % steps == 0:
            self.job.events.write("epoch", **row)
            at.last[phase.name] = means
            at.sums, at.summed = {}, 0

    def _all_steps(self) -> int:
        return sum(phase.run_epochs * self.job.feed.steps(phase) for phase in self.job.phases)

    def _average(self, train: Train) -> None:
        if not train.ema:
            return
        if self.average is None:
            self.average = copy.deepcopy(self.job.student)
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.job.student.parameters(), strict=True):
                mean.lerp_(now, 1 - train.ema)
            for mean, now in zip(self.average.buffers(), self.job.student.buffers(), strict=True):
                mean.copy_(now)

    def _keep(self, update: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, epoch_ends: bool) -> None:
        """Checkpoint at the end of an epoch when it is time, and at once when a signal came. Of several ranks the first
        does it for all: weights, averages and the generators' states are the same everywhere."""
        if not self.job.ranks.first:
            return
        signal_number = self.job.interrupted()
        due = epoch_ends and time.monotonic() - self.since >= self.job.checkpoint_seconds
        if not due and signal_number is None:
            return
        job = self.job
        state = {
            "at": dict(self.at.__dict__),
            "student": job.student.state_dict(),
            "bridge": job.bridge.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": update.state_dict(),
            "scaler": scaler.state_dict(),
            "rng": checkpoint.rng_state(job.device),
            "events": job.events.size(),
        }
        checkpoint.save(job.scratch, state)
        self.since = time.monotonic()
        if signal_number is not None:
            where = f"phase {job.phases[self.at.phase].name}, step {self.at.step}"
            raise Interrupted(signal_number, f"stopped by signal {signal_number} at {where}; checkpoint written")


def _nan_hint() -> str:
    return "lower train.lr or the loss's weight, or use precision: fp32; the last good checkpoint is kept"
