"""Section `train`, and its overrides in a network or a phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, Tag

from stagedkd.spec.schema.base import Section, Weight, Word, by_form

Batch: TypeAlias = Annotated[int, Field(ge=1, le=65536)]
Rate: TypeAlias = Annotated[float, Field(gt=0, lt=100)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=10)]
Below1: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Optimizer: TypeAlias = Literal["adamw", "sgd"]
Shape: TypeAlias = Literal["cosine", "constant"]
Warmup: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Norm: TypeAlias = Annotated[float, Field(ge=0, lt=1e9)]
Labelled: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Balance: TypeAlias = Literal["classes"]
ClassWeights: TypeAlias = Annotated[
    Annotated[Literal["inverse"], Tag("word")]
    | Annotated[tuple[Weight, ...], Field(min_length=1), Tag("list")]
    | Annotated[Mapping[Word, Weight], Field(min_length=1), Tag("map")],
    by_form("inverse, a list of numbers or a map from classes to numbers"),
]


class LongSchedule(Section):
    """A learning-rate schedule that may span all phases of a hop."""

    mark: ClassVar[str | None] = "over"

    kind: Shape
    """cosine: falls to 0 by the end. constant: stays at `lr`."""
    over: Literal["phase", "hop"] = "phase"
    """phase: the schedule restarts with each phase. hop: it runs once over all phases of the hop, counted in epochs,
    with one warm-up at its start (that of the network); each phase's own `lr` is its peak. All phases of the hop must
    have it then. For a network without phases, such as a teacher, both are the same."""


def _bare(schedule: str | LongSchedule) -> str | LongSchedule:
    """Return a schedule over the phase as its bare word, so that both have the same key."""
    return schedule.kind if isinstance(schedule, LongSchedule) and schedule.over == "phase" else schedule


Schedule: TypeAlias = Annotated[
    Annotated[Shape, Tag("word")] | Annotated[LongSchedule, Tag("map")],
    by_form("cosine, constant or a map of kind and over"),
    AfterValidator(_bare),
]


class Train(Section):
    """The training of a network. The learning-rate schedule restarts with each phase, unless it is over the hop."""

    batch: Batch = 32
    """Number of clips in a step. An epoch is ceil(training clips / batch) steps, whichever clips a loss uses."""
    lr: Rate = 1e-3
    """Peak learning rate of the schedule."""
    weight_decay: Decay = 0.05
    """Weight decay; decoupled in adamw (Loshchilov & Hutter 2019)."""
    optimizer: Optimizer = "adamw"
    """The optimizer."""
    momentum: Below1 = 0.9
    """Momentum of sgd."""
    schedule: Schedule = "cosine"
    """Schedule of the learning rate. cosine: falls to 0 by the end of the phase. constant: stays at `lr`. Or a map such
    as {kind: cosine, over: hop}: one schedule over all phases of a hop."""
    warmup_epochs: Warmup = 0.0
    """Epochs of linear warm-up at the start of a phase, fewer than the phase has. Under a schedule over the hop: at the
    start of the hop."""
    precision: Precision = "fp32"
    """Precision of autocast; losses are computed in at least fp32."""
    clip_grad: Norm = 1.0
    """Largest gradient norm; larger gradients are scaled down. 0: no limit."""
    ema: Below1 = 0.0
    """Decay of the moving average of the weights. The average restarts with each phase. If the last phase has one, it
    is the result. 0: no average."""
    labelled: Labelled | None = None
    """Share of labelled clips in the batches of a phase that uses labels and other clips: n clips in a row hold
    n * labelled labelled ones, rounded up. FixMatch's mu (Sohn et al. 2020) is 1 / labelled - 1. The labelled clips
    come in turn, and so do the unlabelled ones. Phases of ce alone draw labelled clips alone, phases without labels
    draw all clips, whatever this says. Where every clip is labelled, it changes nothing. Unset: all clips in turn."""
    balance: Balance | None = None
    """classes: the labelled clips are drawn so that classes are equally frequent: each class once in a round, with its
    clips in turn. A phase that uses labels and other clips also needs `labelled`. Unset: all labelled clips in turn."""
    class_weights: ClassWeights | None = None
    """Weights of the classes in `ce`: the sum of weight(label) * loss, divided by the sum of weight(label), over the
    labelled clips of a batch. inverse: labelled clips / (classes * clips of the class). A list has the order of the
    classes; a map names classes, and the others weigh 1. Other losses are not weighted. Unset: all weigh 1."""

    @property
    def shape(self) -> Shape:
        """The shape of the schedule, whatever it spans."""
        return self.schedule.kind if isinstance(self.schedule, LongSchedule) else self.schedule

    @property
    def over_hop(self) -> bool:
        """Whether the schedule spans all phases of a hop."""
        return isinstance(self.schedule, LongSchedule)

    def over_phase(self) -> Train:
        """Return these settings with a schedule that spans one phase."""
        return self.model_copy(update={"schedule": self.shape})

    def patched(self, *patches: TrainPatch) -> Train:
        """Return these settings, overridden by the fields that each patch sets. The nearest patch comes last."""
        values = self.model_dump()
        for patch in patches:
            values |= patch.model_dump(exclude_none=True)
        return Train(**values)


class TrainPatch(Section):
    """Overrides of `train` for one teacher, assistant, student or phase. The nearest override wins. It has all fields
    of `train`, which are unset by default."""

    batch: Batch | None = None
    lr: Rate | None = None
    weight_decay: Decay | None = None
    optimizer: Optimizer | None = None
    momentum: Below1 | None = None
    schedule: Schedule | None = None
    warmup_epochs: Warmup | None = None
    precision: Precision | None = None
    clip_grad: Norm | None = None
    ema: Below1 | None = None
    labelled: Labelled | None = None
    balance: Balance | None = None
    class_weights: ClassWeights | None = None
