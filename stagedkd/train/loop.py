"""The training loop: phases, epochs, steps; one training step; schedules, averaged weights, checkpoints, events.

A training is a pure function of its job on one kind of device, thread count and compile flag. On the CPU a resumed
training gives the same bits as an uninterrupted one.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from stagedkd.data.mix import Batch
from stagedkd.errors import Interrupted, TrainingError
from stagedkd.models.network import Network
from stagedkd.plan.work import PhaseWork
from stagedkd.spec.schema import Train
from stagedkd.train import checkpoint
from stagedkd.train.correlation import Probe
from stagedkd.train.job import Job, Progress
from stagedkd.train.phases import ForwardPlan, optimizer, plan_forward, set_modes
from stagedkd.train.ranks import refuse_batch_statistics, synchronised
from stagedkd.train.schedule import learning_rate, loss_weight
from stagedkd.train.terms import StepInfo, StepModel, StepModels, step_losses

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
NAN_HINT = "lower train.lr or the loss's weight, or use precision: fp32; the last good checkpoint is kept"
Weigh: TypeAlias = Callable[[Mapping[str, float]], Mapping[str, float]]


def fit(job: Job) -> Progress:
    """Train `job.student` in place. Where the last phase has `ema`, the averaged weights are the result.

    Raises:
        TrainingError: a loss is not finite, no memory, no space; the last checkpoint stays. With several ranks: a
            BatchNorm on the CPU would see the local clips only.
        Interrupted: a signal came; a checkpoint of this very step is written.
    """
    training = _Training(job)
    training.sync_ranks()
    training.resume()
    while training.at.phase < len(job.phases):
        training.phase()
        training.at.phase, training.at.step = training.at.phase + 1, 0
    if training.average is not None and job.phases[-1].train.ema:
        job.student.load_state_dict(training.average.state_dict())
    return training.at


@dataclass(frozen=True)
class StepState:
    """Everything that a step uses and updates."""

    models: StepModels
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def train_step(
    state: StepState, phase: PhaseWork, plan: ForwardPlan, batch: Batch, info: StepInfo, weigh: Weigh
) -> dict[str, float]:
    """Take one training step: the losses, their weighted sum, backward, update.

    Args:
        weigh: gives the weight of each loss from the values of the losses.
    Returns:
        the value of every loss, unweighted, and their weighted `total`.
    Raises:
        TrainingError: a loss is not finite; nothing was updated.
    """
    dtype = AUTOCAST.get(phase.train.precision)
    with torch.autocast(state.models.device.type, dtype=dtype, enabled=dtype is not None):
        parts = step_losses(state.models, phase, plan, batch, info)
    numbers: list[float] = torch.stack(list(parts.values())).tolist()
    values = dict(zip(parts, numbers, strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"loss '{name}' is {value}")
    weights = weigh(values)
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(total).backward()
    state.models.ranks.add_gradients(state.parameters, state.models.adapters.parameters())
    if phase.train.clip_grad:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.parameters, phase.train.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return values | {"total": math.fsum(weights[name] * value for name, value in values.items())}


@contextmanager
def sound_backend(device: torch.device, precision: str) -> Generator[None]:
    """Inside, half types on the CPU run without oneDNN: its bf16 gradients of small 3-D convolutions held garbage
    (measured, docs/decisions/0005)."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not (device.type == "cpu" and precision != "fp32")
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class _Training:
    """A training on its way. `average` holds the averaged weights, `saved` the checkpoint that is being resumed."""

    def __init__(self, job: Job) -> None:
        self.job, self.run, self.at = job, job.execution, Progress()
        self.average: Network | None = None
        self.saved: dict[str, Any] | None = None
        self.since = time.monotonic()
        forward = job.student.run
        self.student = StepModel(torch.compile(forward) if self.run.compile else forward, job.input)

    def sync_ranks(self) -> None:
        """Give all ranks the same weights, and refuse a BatchNorm that would see the local clips only."""
        job, ranks = self.job, self.run.ranks
        if ranks.count == 1:
            return
        synchronised(job.student, self.run.device, ranks)
        for phase in job.phases:
            set_modes(job.student, job.adapters, phase, job.cut)
            refuse_batch_statistics(job.student, ranks, f"phase {phase.name}")
        ranks.broadcast_states(job.student, job.adapters)

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        self.saved = checkpoint.load(self.run.scratch)
        if self.saved is None:
            self.run.log.truncate(0)
            return
        job, saved = self.job, self.saved
        self.at = Progress(**saved["at"])
        job.student.load_state_dict(saved["student"])
        job.adapters.load_state_dict(saved["adapters"])
        if saved["average"] is not None:
            self.average = copy.deepcopy(job.student)
            self.average.load_state_dict(saved["average"])
        checkpoint.set_rng_state(saved["rng"], self.run.device)
        self.run.log.truncate(saved["events"])
        self.run.log.write("resumed", phase=job.phases[self.at.phase].name, step=self.at.step)

    def phase(self) -> None:
        """Train one phase from `at.step` to its end."""
        job, at = self.job, self.at
        phase = job.phases[at.phase]
        set_modes(job.student, job.adapters, phase, job.cut)
        if self.run.compile:  # anew for each phase: what it trains and runs is another graph
            torch.compiler.reset()
        if at.step == 0:
            self.average = None  # like the schedule, the average restarts with each phase
            at.scales = {}
        state = self._state(phase)
        if self.saved is not None:
            state.optimizer.load_state_dict(self.saved["optimizer"])
            state.scaler.load_state_dict(self.saved["scaler"])
            self.saved = None
        plan = plan_forward(phase, job.cut, job.teacher_cut)
        batches = job.feed.batches(phase, at.phase, at.step, self.run.device, self.run.ranks)
        with sound_backend(self.run.device, phase.train.precision), closing(batches):
            self._steps(phase, state, plan, batches)

    def _state(self, phase: PhaseWork) -> StepState:
        job, run = self.job, self.run
        update = optimizer(job.student, job.adapters, phase)
        scaler = torch.amp.GradScaler(run.device.type, enabled=phase.train.precision == "fp16")
        parameters = [parameter for group in update.param_groups for parameter in group["params"]]
        models = StepModels(self.student, job.guides, job.adapters, run.device, job.options, job.user_losses, run.ranks)
        return StepState(models, parameters, update, scaler)

    def _steps(
        self, phase: PhaseWork, state: StepState, plan: ForwardPlan, batches: Iterator[tuple[Batch, float]]
    ) -> None:
        at, steps = self.at, self.job.feed.steps(phase)  # steps of an epoch
        while at.step < phase.run_epochs * steps:
            if phase.pairs and self.job.probe is not None and (at.step % steps == 0 or at.rho is None):
                self._measure(self.job.probe)
            rate = learning_rate(phase.train, at.step, phase.epochs * steps, steps)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            started = time.monotonic()
            try:
                batch, waited = next(batches)
                values = train_step(state, phase, plan, batch, self._info(steps), partial(self._weigh, phase, steps))
            except TrainingError as error:
                raise TrainingError(f"{error.message} at {self._place(phase, steps)}", hint=NAN_HINT) from None
            except torch.OutOfMemoryError:
                hint = "lower train.batch or clip.size, or set train.precision: bf16"
                raise TrainingError(f"out of memory at {self._place(phase, steps)}", hint=hint) from None
            self._average(phase.train)
            at.seconds, at.waited = at.seconds + time.monotonic() - started, at.waited + waited
            self._report(phase, steps, values, rate)
            self._save(state, epoch_ends=at.step % steps == 0)

    def _measure(self, probe: Probe) -> None:
        """Measure the correlation of substages."""
        self.at.rho = self.run.ranks.broadcast(probe.correlation(self.job.student)).tolist()

    def _info(self, steps: int) -> StepInfo:
        at = self.at
        rho_KM = torch.tensor(at.rho, device=self.run.device) if at.rho is not None else None
        return StepInfo(at.phase, at.step / steps, at.total, rho_KM)

    def _weigh(self, phase: PhaseWork, steps: int, values: Mapping[str, float]) -> dict[str, float]:
        """The weight of each loss now: its scheduled weight, divided under `normalize` by its mean over the first
        epoch."""
        at, named = self.at, phase.losses.named()
        weights = {name: loss_weight(named[name], at.step / steps, phase.epochs) for name in values}
        if not self.job.normalize:
            return weights
        for name, value in values.items():
            total, count = at.scales.get(name, [0.0, 0.0])
            if value and count < steps:  # a loss that begins at zero has its first epoch when it is there
                at.scales[name] = [total + abs(value), count + 1]
        means = {name: total / count for name, (total, count) in at.scales.items()}
        return {name: weight / means.get(name, 1.0) for name, weight in weights.items()}

    def _place(self, phase: PhaseWork, steps: int) -> str:
        return f"phase {phase.name}, epoch {self.at.step // steps + 1}, step {self.at.step + 1}"

    def _report(self, phase: PhaseWork, steps: int, values: dict[str, float], rate: float) -> None:
        """Count the step, tell the listener, and write the event of an epoch at its end."""
        at = self.at
        at.step, at.total, at.summed = at.step + 1, at.total + 1, at.summed + 1
        for name, value in values.items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        means = {name: value / at.summed for name, value in at.sums.items()}
        row = {
            "phase": phase.name,
            "epoch": (at.step - 1) // steps + 1,
            "epochs": phase.run_epochs,
            "step": at.total,
            "lr": rate,
            "losses": means,
            "clips_per_s": at.total * phase.train.batch / max(at.seconds, 1e-9),
        }
        self.run.on_step({**row, "done": at.total / max(1, self._all_steps()), "seconds": at.seconds})
        if at.step % steps == 0:
            self.run.log.write("epoch", **row)
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

    def _save(self, state: StepState, *, epoch_ends: bool) -> None:
        """Write a checkpoint at the end of an epoch when it is time, and at once when a signal came.

        Of several ranks the first one does it for all: weights, averages and the states of the generators are the same
        everywhere.
        """
        job, run = self.job, self.run
        if not run.ranks.first:
            return
        signal_number = run.interrupted()
        due = epoch_ends and time.monotonic() - self.since >= run.checkpoint_seconds
        if not due and signal_number is None:
            return
        saved = {
            "at": dict(self.at.__dict__),
            "student": job.student.state_dict(),
            "adapters": job.adapters.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "rng": checkpoint.rng_state(run.device),
            "events": run.log.size(),
        }
        checkpoint.save(run.scratch, saved)
        self.since = time.monotonic()
        if signal_number is not None:
            where = f"phase {job.phases[self.at.phase].name}, step {self.at.step}"
            raise Interrupted(signal_number, f"stopped by signal {signal_number} at {where}; checkpoint written")
