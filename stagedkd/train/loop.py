"""The training loop: phases, epochs and steps, one training step, averaged weights, validation and checkpoints.

For one kind of device, thread count and compile flag, a training is a pure function of its job. On the CPU a resumed
training gives the same bits as an uninterrupted one.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The type stubs of torch, safetensors and Parsl are incomplete.
from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from stagedkd.data.mix import Batch
from stagedkd.errors import Interrupted, TrainingError
from stagedkd.models.network import Network
from stagedkd.models.quantise import quantisers
from stagedkd.plan.kind import PhaseWork
from stagedkd.spec.schema import Train
from stagedkd.train import checkpoint
from stagedkd.train.account import Account
from stagedkd.train.backend import AUTOCAST, is_out_of_memory, sound_backend
from stagedkd.train.correlation import Probe
from stagedkd.train.job import Job, Progress
from stagedkd.train.kept import KeptPhase, KeptPrefix
from stagedkd.train.phases import ForwardPlan, load_optimizer, optimizer, plan_forward, set_modes
from stagedkd.train.quantise import begin_int8, insert_quantisers
from stagedkd.train.ranks import convert_batchnorms, refuse_batch_statistics
from stagedkd.train.readings import LossReader, NotFinite
from stagedkd.train.rehearsal import PASSES
from stagedkd.train.schedule import loss_weight, step_rate
from stagedkd.train.step import StepInfo, StepModel, StepModels
from stagedkd.train.terms import step_losses

NAN_HINT = "lower train.lr or the loss's weight, or use precision: fp32; the last good checkpoint is kept"
Weigh: TypeAlias = Callable[[Sequence[str]], dict[str, float]]


def fit(job: Job) -> Progress:
    """Train `job.student` in place. If the last phase has `ema`, the averaged weights are the result.

    Returns:
        where the training stands at its end.
    Raises:
        TrainingError: a loss is not finite, memory or disk space is used up, or the checkpoint cannot be read; the last
            checkpoint stays. With several ranks: a BatchNorm on the CPU would use the statistics of the local clips.
        StoreError: the lease of the stage is lost.
        Interrupted: a signal came, and a checkpoint of the current step was written. With several ranks the first one
            raises it alone.
    """
    training = _Training(job)
    training.sync_ranks()
    with job.execution.log:
        training.resume()
        while training.progress.phase < len(job.phases):
            training.run_phase()
    if training.average is not None and job.phases[-1].train.ema:
        job.student.load_state_dict(training.average.state_dict())
    return training.progress


@dataclass(frozen=True)
class StepState:
    """Everything that a step uses and updates."""

    models: StepModels
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def train_step(
    state: StepState,
    phase: PhaseWork,
    plan: ForwardPlan,
    batch: Batch,
    info: StepInfo,
    weigh: Weigh,
    reader: LossReader,
    *,
    read: bool = False,
) -> dict[str, float]:
    """Take one training step: compute the losses and their weighted sum, run backward, update the parameters.

    The host waits for the device at most once: for the losses, when the backward pass is queued. Under fp16 the
    gradient scaler waits, too.

    Args:
        weigh: gives the weight of each of the named losses. reader: takes the losses. read: they are read in this step,
            due or not.
    Returns:
        the weight of every loss.
    Raises:
        NotFinite: a loss is not finite. This step updated no parameter, but statistics of BatchNorm and the memories of
            `crd` and `elr`; the steps between that of the loss and this one did.
    """
    dtype = AUTOCAST.get(phase.train.precision)
    with torch.autocast(state.models.device.type, dtype=dtype, enabled=dtype is not None):
        parts = step_losses(state.models, phase, plan, batch, info)
    reader.add(parts, now=read)
    weights = weigh(tuple(parts))
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(total).backward()
    state.models.ranks.add_gradients(state.parameters, state.models.adapters.parameters())
    reader.read()
    if phase.train.clip_grad:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.parameters, phase.train.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return weights


class _Training:
    """A training that is being run. `average` holds the averaged weights, `loaded` the checkpoint from which it resumes
    until its phase begins, `last_write` the time of the start or of the last checkpoint."""

    def __init__(self, job: Job) -> None:
        self.job, self.execution, self.progress = job, job.execution, Progress()
        self.average: Network | None = None
        self.loaded: dict[str, Any] | None = None
        self.last_write = time.monotonic()
        self.reader = LossReader(self.execution.loss_every)
        self.account = Account(job, self.progress, self.reader)
        forward = job.student.run
        self.student = StepModel(torch.compile(forward) if self.execution.compile else forward, job.input)

    def sync_ranks(self) -> None:
        """Give all ranks the same weights, and refuse a BatchNorm that would use the statistics of the local clips."""
        job, ranks = self.job, self.execution.ranks
        if ranks.count == 1:
            return
        convert_batchnorms(job.student, self.execution.device, ranks)
        for phase in job.phases:
            set_modes(job.student, job.adapters, phase, job.cut)
            refuse_batch_statistics(job.student, ranks, f"phase {phase.name}")
        ranks.broadcast_states(job.student, job.adapters)

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        self.loaded = checkpoint.load(self.execution.scratch)
        if self.loaded is None:
            self.execution.log.truncate(0)
            return
        job, loaded = self.job, self.loaded
        vars(self.progress).update(loaded["at"])
        if job.phases[self.progress.phase].quantised:
            insert_quantisers(job)
        job.student.load_state_dict(loaded["student"])
        job.adapters.load_state_dict(loaded["adapters"])
        if loaded["average"] is not None:
            self.average = copy.deepcopy(job.student)
            self.average.load_state_dict(loaded["average"])
        checkpoint.set_rng_state(loaded["rng"], self.execution.device)
        if lost := self.execution.log.truncate(loaded["events"]):
            self.execution.note(f"{self.execution.log.path} has lost {lost} bytes: the report lacks these events")
        at = self.progress
        self.execution.log.write("resumed", phase=job.phases[at.phase].name, step=at.total, phase_step=at.step)

    def run_phase(self) -> None:
        """Train the current phase from the current step to its end, and move on to the next."""
        job, progress = self.job, self.progress
        phase = job.phases[progress.phase]
        if phase.quantised and not quantisers(job.student):
            averaged = self.average if progress.phase and job.phases[progress.phase - 1].train.ema else None
            begin_int8(job, averaged)
            self.average = None
        set_modes(job.student, job.adapters, phase, job.cut)
        if self.execution.compile:  # each phase trains and runs another graph, so it is compiled again
            torch.compiler.reset()
        if progress.step == 0:
            self.average = None  # like the schedule, the average restarts with each phase
            progress.scales = {}
        state = self._state(phase)
        if self.loaded is not None:
            load_optimizer(state.optimizer, self.loaded["optimizer"])
            state.scaler.load_state_dict(self.loaded["scaler"])
            self.loaded = None
        plan, first, rehearsal = plan_forward(phase, job.cut, job.teacher_cut), progress.step, self.execution.rehearsal
        for _ in range(PASSES if rehearsal else 1):
            progress.step = first
            batches = job.feed.batches(phase, progress.phase, first, self.execution.device, self.execution.ranks)
            if rehearsal:
                rehearsal.begin_pass(phase.name, job.feed.steps(phase), phase.run_epochs)
            with sound_backend(self.execution.device, phase.train.precision), closing(batches):
                self._steps(phase, state, plan, batches)
        if rehearsal and job.validation:
            rehearsal.phases[phase.name].validating = job.validation.seconds(job.student, job.input, phase)
        if rehearsal and self.execution.ranks.first:
            rehearsal.checkpoint = max(
                rehearsal.checkpoint, self._write_checkpoint(phase, state, job.feed.steps(phase))
            )
        progress.phase += 1
        progress.step = 0

    def _state(self, phase: PhaseWork) -> StepState:
        """Build what a step of the phase uses, with a fresh optimizer."""
        job, execution = self.job, self.execution
        update = optimizer(job.student, job.adapters, phase)
        scaler = torch.amp.GradScaler(execution.device.type, enabled=phase.train.precision == "fp16")
        parameters = [parameter for group in update.param_groups for parameter in group["params"]]
        kept = job.kept[self.progress.phase] if job.kept else KeptPhase(job.guides)
        prefix = kept.prefix and KeptPrefix(self.student.run, job.input, kept.prefix, job.feed.slots, execution.note)
        models = StepModels(
            replace(self.student, prefix=prefix or None),
            kept.guides,
            job.adapters,
            execution.device,
            job.options,
            job.user_losses,
            execution.ranks,
            job.clip_weights,
        )
        return StepState(models, parameters, update, scaler)

    def _steps(
        self, phase: PhaseWork, state: StepState, plan: ForwardPlan, batches: Iterator[tuple[Batch, float]]
    ) -> None:
        """Take the steps of a phase from the current one to its end."""
        progress, epoch_steps, rehearsal = self.progress, self.job.feed.steps(phase), self.execution.rehearsal
        while progress.step < phase.run_epochs * epoch_steps:
            if rehearsal and self.execution.ranks.agree(rehearsal.enough(phase.name)):
                return
            if (
                phase.pairs
                and self.job.probe is not None
                and (progress.step % epoch_steps == 0 or progress.rho is None)
            ):
                self._measure(self.job.probe, phase, progress.step // epoch_steps + 1)
            rate = step_rate(self.job.phases, progress.phase, progress.step, epoch_steps)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            epoch_ends = (progress.step + 1) % epoch_steps == 0
            started = time.monotonic()
            try:
                batch, waited = next(batches)
                info, weigh = self._info(epoch_steps), partial(self._weigh, phase, epoch_steps)
                self.job.adapters.responses.follow(self.job.student, phase)
                weights = train_step(state, phase, plan, batch, info, weigh, self.reader, read=epoch_ends)
            except TrainingError as error:
                raise self._located(error, phase, epoch_steps) from None
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                hint = "lower train.batch or clip.size, or set train.precision: bf16"
                raise TrainingError(
                    f"out of memory at {self._place(phase, epoch_steps, progress.step)}", hint=hint
                ) from None
            self._average(phase.train)
            progress.seconds += time.monotonic() - started
            progress.waited += waited
            self.account.unread.append(weights)
            self.account.report(phase, epoch_steps, rate)
            if epoch_ends:
                self._validate(phase, progress.step // epoch_steps)
            self._save(phase, state, epoch_steps)
            if rehearsal:
                rehearsal.step(phase.name)

    def _located(self, error: TrainingError, phase: PhaseWork, epoch_steps: int) -> TrainingError:
        """The error with the place of its step."""
        step = self.progress.step
        if isinstance(error, NotFinite):
            step += error.index - len(self.account.unread)
        return TrainingError(f"{error.message} at {self._place(phase, epoch_steps, step)}", hint=NAN_HINT)

    def _place(self, phase: PhaseWork, epoch_steps: int, step: int) -> str:
        return f"phase {phase.name}, epoch {step // epoch_steps + 1}, step {step + 1}"

    def _measure(self, probe: Probe, phase: PhaseWork, epoch: int) -> None:
        """Measure the correlation of substages, and note the shares of the mixtures that follow from it."""
        job, progress = self.job, self.progress
        progress.rho = self.execution.ranks.broadcast(probe.correlation(job.student)).tolist()
        if job.adapters.pairing == "correlation":
            progress.note_mixture(phase, epoch, (job.cut, job.teacher_cut))

    def _info(self, epoch_steps: int) -> StepInfo:
        progress = self.progress
        rho_KM = torch.tensor(progress.rho) if progress.rho is not None else None  # on the CPU, where it is read
        return StepInfo(progress.phase, progress.step / epoch_steps, progress.total, rho_KM)

    def _weigh(self, phase: PhaseWork, epoch_steps: int, names: Sequence[str]) -> dict[str, float]:
        """The current weight of each loss: its scheduled weight. Under `normalize` it is divided by the mean of the
        loss's absolute values other than zero, from the first of them for as many steps as an epoch has; the sums are
        kept in `progress.scales`. In these steps the losses are read before the backward pass."""
        progress, named = self.progress, phase.losses.named()
        weights = {name: loss_weight(named[name], progress.step / epoch_steps, phase.epochs) for name in names}
        if not self.job.normalize:
            return weights
        scales = progress.scales
        if any(scales.get(name, [0.0, 0.0])[1] < epoch_steps for name in names):
            self.reader.read(now=True)
            for name, value in self.reader.values[-1].items():
                total, count = scales.get(name, [0.0, 0.0])
                if value and count < epoch_steps:  # zeros do not count towards the first epoch of a loss
                    scales[name] = [total + abs(value), count + 1]
        means = {name: total / count for name, (total, count) in scales.items()}
        return {name: weight / means.get(name, 1.0) for name, weight in weights.items()}

    def _validate(self, phase: PhaseWork, epoch: int) -> None:
        """Validate the network that would be the result if the training ended here, and write the event."""
        validation, progress, execution = self.job.validation, self.progress, self.execution
        if validation is None or execution.rehearsal or not validation.is_due(phase, epoch):
            return
        started = time.monotonic()
        network = self.average if self.average is not None else self.job.student
        measured = validation.measure(network, self.job.input, phase.train.batch, execution.interrupted)
        progress.validating += time.monotonic() - started
        if measured is not None:
            progress.top1 = measured["top1"]
            execution.log.write("validation", phase=phase.name, epoch=epoch, step=progress.total, **measured)

    def _average(self, train: Train) -> None:
        """Update the averaged weights, if the phase has `ema`."""
        if not train.ema:
            return
        if self.average is None:
            self.average = copy.deepcopy(self.job.student)
        with torch.no_grad():
            for mean, current in zip(self.average.parameters(), self.job.student.parameters(), strict=True):
                mean.lerp_(current, 1 - train.ema)
            for mean, current in zip(self.average.buffers(), self.job.student.buffers(), strict=True):
                mean.copy_(current)

    def _save(self, phase: PhaseWork, state: StepState, epoch_steps: int) -> None:
        """Write a checkpoint at the end of an epoch if the last one is old enough, and at once if a signal came. All
        losses are read before, so that no checkpoint holds the results of one that is not finite.

        With several ranks the first one writes for all: weights, averages and the states of the generators are the same
        on all ranks.

        Raises:
            Interrupted: a signal came; the checkpoint was written. TrainingError: a loss is not finite.
        """
        execution = self.execution
        if not execution.ranks.first:
            return
        signal_number = execution.interrupted()
        due = (
            self.progress.step % epoch_steps == 0 and time.monotonic() - self.last_write >= execution.checkpoint_seconds
        )
        if not due and signal_number is None:
            return
        self._write_checkpoint(phase, state, epoch_steps)
        if signal_number is not None:
            where = f"phase {phase.name}, step {self.progress.step}"
            message = f"stopped by signal {signal_number} at {where}; checkpoint written"
            raise Interrupted(signal_number, message, hint="run the same command to resume from the checkpoint")

    def _write_checkpoint(self, phase: PhaseWork, state: StepState, epoch_steps: int) -> int:
        """Read all losses, then write a checkpoint. Returns its size in bytes."""
        job, execution = self.job, self.execution
        try:
            self.reader.read(now=True)
        except TrainingError as error:
            raise self._located(error, phase, epoch_steps) from None
        self.account.tally(phase)
        contents = {
            "at": dict(self.progress.__dict__),
            "student": job.student.state_dict(),
            "adapters": job.adapters.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": state.optimizer.state_dict(),
            "scaler": state.scaler.state_dict(),
            "rng": checkpoint.rng_state(execution.device),
            "events": execution.log.flush(),
        }
        size = checkpoint.save(execution.scratch, contents)
        self.last_write = time.monotonic()
        return size
