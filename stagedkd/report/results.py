"""What is reported of an experiment: its networks, and what is to be said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagedkd.data.refine import bound_hit
from stagedkd.plan.graph import Plan
from stagedkd.report.statistics import near_chance
from stagedkd.spec.schema import FEATURES, LOGITS

FEW_CLEAN = 50  # clean clips below which a report says that a prior took part in the calibration
NEGLIGIBLE = 0.01  # a share of the total loss, below which a loss is said to do nothing


@dataclass(frozen=True)
class NetworkResult:
    """The result of one network of the experiment. Fractions are in 0..1. A teacher without a measured accuracy has NaN
    in top1, interval and ece; params of 0 are unknown.

    top5: None for fewer than five classes. flops: 2 x multiply-adds of one clip. labels: those of its training here:
    same, all (the true ones), refined, or none where it was not trained here. weights: the name of those that it
    started from, or "". declared: the labels behind these, in words. commonest: the share of the commonest class among
    the evaluated clips, None where the store does not know it. train_flops: 2 x multiply-adds of the whole training,
    forward and backward, including the part of its guides; None where the stage did not count them. seconds: the time
    of the training. latency: the seconds of one clip; both are None where the store lacks run.json. clips_of: the
    number of all training clips, where the network saw a part of them. dead: the share of the channels at the ends
    of its blocks that are constant over a fixed set of validation clips; None where unknown. size: the bytes of its
    weight file, None where it has none.
    """

    name: str
    arch: str
    top1: float
    interval: tuple[float, float]
    top5: float | None
    ece: float
    per_class: dict[str, float]
    params: int
    flops: int
    labels: str
    labelled_clips: int
    training_clips: int
    steps: int
    train_flops: int | None
    seconds: float | None
    latency: float | None
    key: str
    classes: int = 1
    weights: str = ""
    declared: str = ""
    commonest: float | None = None
    clips_of: int | None = None
    dead: float | None = None
    size: int | None = None

    @property
    def labels_used(self) -> str:
        """The labels that made the network, in words, such as `120 of 1200`."""
        which = {"all": " (true)", "refined": " (refined)"}.get(self.labels, "")
        here = "not trained here" if self.labels == "none" else f"{self.labelled_clips} of {self.training_clips}{which}"
        if self.clips_of is not None:
            here += f"; it sees {self.training_clips} of {self.clips_of} clips"
        if not self.declared:
            return here
        return self.declared if self.labels == "none" else f"{self.declared}, then {here}"

    @property
    def measured(self) -> bool:
        """Whether its accuracy is known."""
        return not math.isnan(self.top1)

    def smaller_than(self, teacher: NetworkResult) -> float | None:
        """Return the teacher's parameters over its own; None if one of them is unknown."""
        return teacher.params / self.params if self.params and teacher.params else None

    @property
    def near_chance(self) -> bool:
        """Whether it may be no better than a network that ignores the clips; see `statistics.near_chance`."""
        return self.measured and near_chance(self.interval, self.classes, self.commonest)

    def as_json(self, teacher: NetworkResult) -> dict[str, Any]:
        """Return plain values for metrics.json. `size_ratio` is the teacher's parameters over this network's."""
        values = {k: v for k, v in self.__dict__.items() if k != "interval"}
        values |= {"top1_interval95": list(self.interval), "size_ratio": self.smaller_than(teacher)}
        return values if self.measured else values | {"top1": None, "ece": None, "top1_interval95": None}


@dataclass(frozen=True)
class Correlation:
    """The similarity of the substages of a hop's two networks, `before` and `after` its training: debiased linear CKA
    of pooled features over `clips` clips, in 0..1, with a row for each substage of the student and a column for each
    of the teacher. `mixtures` are the shares of every epoch under the pairing `correlation` (see `shares_map`)."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    before: tuple[tuple[float, ...], ...]
    after: tuple[tuple[float, ...], ...]
    clips: int | None
    mixtures: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Refinement:
    """One round of label refinement, measured against the hidden truth. Fractions are in 0..1 and None where unknown:
    `before` and `after` are the fractions of right labels, `coverage` is the fraction of clips with an accepted label,
    `precision` the fraction of right ones among these. `nll` is in nats.
    `temperatures` calibrate the networks, by `calibrated_on` clean clips; () and None where the round was not run."""

    name: str
    round: int
    outcome: str
    before: float | None
    after: float | None
    coverage: float
    precision: float | None
    ece: float | None
    nll: float | None
    wrong_to_right: int
    right_to_wrong: int
    recall: Mapping[str, float]
    train_flops: int
    temperatures: tuple[float, ...] = ()
    calibrated_on: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the calibration of the round."""
        rows: list[str] = []
        if self.calibrated_on is not None and self.calibrated_on < FEW_CLEAN:
            few = f"{self.name} is calibrated on {self.calibrated_on} clean clips only"
            values = " and ".join(f"{temperature:.2f}" for temperature in self.temperatures)
            rows.append(f"{few}: a prior draws its temperature towards 1; it is {values}")
        for bound in filter(None, map(bound_hit, self.temperatures)):
            rows.append(f"{self.name}: a temperature is at its bound {bound:g}, so its posteriors may be miscalibrated")
        return tuple(rows)

    @property
    def worst(self) -> str:
        """The class with the lowest recall; "" where no recall is known."""
        return min(self.recall, key=self.recall.__getitem__, default="")


@dataclass(frozen=True)
class LossShares:
    """What each loss added to the total in one phase of a network's training: the share of each weighted loss, in
    0..1, by name."""

    network: str
    phase: str
    shares: Mapping[str, float]

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on each loss that did next to nothing. It has no number, so that all seeds of a grid share it."""
        small = [name for name, share in self.shares.items() if share < NEGLIGIBLE]
        where = f"of the total in phase '{self.phase}' of the {self.network}"
        return tuple(
            f"the loss '{name}' is below {NEGLIGIBLE:.0%} {where}: raise its weight, or remove it" for name in small
        )


@dataclass(frozen=True)
class Validation:
    """A validation during a training: after `epoch` epochs of a phase and `step` steps of all phases, the fraction
    `top1` of right clips in 0..1 and the mean loss, over `clips` clips."""

    phase: str
    epoch: int
    step: int
    top1: float
    loss: float
    clips: int


@dataclass(frozen=True)
class Results:
    """The results of all networks of a plan, with the facts that every report shows beside them."""

    plan: Plan
    teacher: NetworkResult
    assistants: tuple[NetworkResult, ...]
    student: NetworkResult
    control: NetworkResult | None
    split: str
    views: str
    data: dict[str, Any]
    labels: dict[str, int]
    labels_right: float | None
    curves: dict[str, list[Mapping[str, Any]]]
    without_run: tuple[str, ...]
    device: str
    correlations: Mapping[str, Correlation] = field(default_factory=dict[str, Correlation])
    refinements: tuple[Refinement, ...] = ()
    co_teachers: tuple[NetworkResult, ...] = ()
    data_notes: tuple[str, ...] = ()
    loss_shares: tuple[LossShares, ...] = ()
    damage: tuple[str, ...] = ()
    not_logged: tuple[str, ...] = ()
    validation: Mapping[str, tuple[Validation, ...]] = field(default_factory=dict[str, "tuple[Validation, ...]"])

    @property
    def networks(self) -> tuple[NetworkResult, ...]:
        """The teacher, co-teachers, assistants, student and control, in this order."""
        above = (self.teacher, *self.co_teachers, *self.assistants)
        return (*above, self.student, *((self.control,) if self.control else ()))

    @property
    def hops(self) -> tuple[NetworkResult, ...]:
        """The distilled networks: assistants and student."""
        return (*self.assistants, self.student)

    @property
    def labels_behind(self) -> int:
        """The most labelled clips that any network behind the student was trained on here: its own, the assistants',
        and the teachers' where a loss compares with them."""
        losses = [phase.losses for phase in self.plan.spec.distill.phases.values()]
        taught = any(loss.comparing(LOGITS) or loss.comparing(FEATURES) for loss in losses)
        networks = [*self.hops, *((self.teacher, *self.co_teachers) if taught else ())]
        return max(network.labelled_clips for network in networks)

    @property
    def train_flops(self) -> int | None:
        """The training compute of all hops and of the refined labels, without the training of the teachers; None where
        one of these is unknown."""
        counts = [*(network.train_flops for network in self.hops), *(r.train_flops for r in self.refinements)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know: labels that were used, the split, files that were skipped."""
        rows = list(self.plan.notes)
        if self.split == "test":
            rows.append("these results are on the TEST split, as the spec asks")
        if self.plan.spec.teacher.seed != self.plan.spec.seed:
            rows.append(f"the teacher has seed {self.plan.spec.teacher.seed} for every seed of the student")
        if self.labels.get("noisy") and self.labels_right is not None:
            rows.append(f"{self.labels_right:.1%} of the given labels are right, measured against the hidden truth")
        unmeasured = [n.name for n in self.networks if not n.measured]
        rows += [f"the {name} has no accuracy: there is nothing to measure it by" for name in unmeasured]
        rows += filter(None, map(self._chance_note, (self.teacher, *self.co_teachers, *self.assistants)))
        rows += [note for round in self.refinements for note in round.notes]
        rows += [note for row in self.loss_shares for note in row.notes]
        rows += self.data_notes
        rows += [f"copies in more than one split: {' = '.join(paths)}" for paths in self.data["leaks"]]
        rows += [f"bad file {row['path']}: {row['reason']}" for row in self.data["bad_files"]]
        rows += [f"{row['path']} is used: {row['note']}" for row in self.data.get("file_notes", ())]
        rows += [f"{line}; this report does without" for line in self.damage]
        rows += self.not_logged
        if self.without_run:
            rows.append(f"time and device are unknown, because run.json is missing: {', '.join(self.without_run)}")
        return tuple(rows)

    def _repr_html_(self) -> str:
        """The tables of the terminal, for notebooks."""
        from stagedkd.report.notebook import results_html

        return results_html(self)

    def _chance_note(self, network: NetworkResult) -> str:
        """Return a note on a network that teaches and is near chance, with what is likely to be wrong; else ""."""
        if not network.near_chance:
            return ""
        low, high = network.interval
        chance = max(1 / network.classes, network.commonest or 0.0)
        measured = f"top-1 {network.top1:.1%} (95% interval {low:.1%} to {high:.1%})"
        guess = "naming the commonest class" if chance > 1 / network.classes else "guessing"
        causes = "train it longer, or look at its labels"
        if network.weights:
            causes = f"do the classes of {network.weights} have the order of the data, and were its clips normalised"
            causes += " and sampled like these (input.normalize, clip.sampler, clip.stride)?"
        where = f"the {network.name} is near chance on the {self.split} split"
        few = "more clips for validation would tell; " if network.top1 > chance else ""
        return f"{where}: {measured}, and {guess} gives {chance:.1%}. It may have nothing to teach: {few}{causes}"


def share_text(share: float | None) -> str:
    """Return the share of a loss as a percentage with two significant digits where it is small; "" for none."""
    return "" if share is None else f"{100 * share:.1f}%" if share >= NEGLIGIBLE or not share else f"{100 * share:.2g}%"
