"""The account of a training: how far it is, what its losses are, and who is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from stagedkd.plan.kind import PhaseWork
from stagedkd.train.job import Job, Progress
from stagedkd.train.readings import LossReader
from stagedkd.train.tally import contributions, count


@dataclass
class Account:
    """Counts the steps of a training in its `progress`, adds up the losses that the `reader` has read, and tells the
    listener and the event log. `unread` holds the weights of the losses of each step whose losses were not read yet."""

    job: Job
    progress: Progress
    reader: LossReader
    unread: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def report(self, phase: PhaseWork, epoch_steps: int, rate: float) -> None:
        """Count a step. Where losses were read, tell the listener, and write the event of an epoch at its end."""
        progress, execution = self.progress, self.job.execution
        progress.step += 1
        progress.total += 1
        progress.clips += phase.train.batch
        if not self.tally(phase):
            return
        means = {name: value / progress.summed for name, value in progress.sums.items()}
        row = {
            "phase": phase.name,
            "epoch": (progress.step - 1) // epoch_steps + 1,
            "epochs": phase.run_epochs,
            "step": progress.total,
            "lr": rate,
            "losses": means,
            "clips_per_s": progress.clips / max(progress.seconds, 1e-9),
        }
        seconds, done = progress.seconds + progress.validating, progress.total / max(1, self._all_steps())
        execution.on_step({**row, "done": done, "seconds": seconds, "top1": progress.top1})
        if progress.step % epoch_steps == 0:
            mixture = {"shares": progress.mixtures[-1]["shares"]} if phase.pairs and progress.mixtures else {}
            execution.log.write("epoch", **row, terms=contributions(progress.tally), **mixture)
            progress.last[phase.name] = means
            progress.sums, progress.summed, progress.tally = {}, 0, {}

    def tally(self, phase: PhaseWork) -> bool:
        """Add up the losses that were read. Returns whether there were any."""
        progress, taken = self.progress, self.reader.take()
        if not taken:
            return False
        for values, weights in zip(taken, self.unread, strict=True):
            weighted = {name: weights[name] * value for name, value in values.items()}
            for name, value in {**values, "total": math.fsum(weighted.values())}.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            count(progress.tally, weighted)
            count(progress.tallies.setdefault(phase.name, {}), weighted)
        progress.summed += len(taken)
        self.unread.clear()
        return True

    def _all_steps(self) -> int:
        return sum(phase.run_epochs * self.job.feed.steps(phase) for phase in self.job.phases)
