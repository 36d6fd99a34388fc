"""What every loss has, and what losses compare."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Section, Weight

Temperature: TypeAlias = Annotated[float, Field(gt=0, le=1000)]
Factor: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Samples: TypeAlias = Literal["auto", "positions", "frames", "batch"]

# What a loss compares. labels: the student's logits with labels. logits: the logits of both networks. paired: each pair
# of feature maps. projected: each pair, with the student's channels projected to the teacher's. substages: all pairs at
# once. deepest: only the deepest pair. graft: each pair, with the teacher's later blocks and head. embedding and
# projected_embedding: the pooled features in front of both heads.
Compares: TypeAlias = Literal[
    "labels", "logits", "paired", "projected", "substages", "deepest", "graft", "embedding", "projected_embedding"
]
LOGITS: frozenset[Compares] = frozenset({"logits"})
RESPONSES: frozenset[Compares] = frozenset({"labels", "logits"})  # these need the student's logits
PROJECTED: frozenset[Compares] = frozenset({"projected"})
PAIRED: frozenset[Compares] = frozenset({"paired", "projected"})
FEATURES: frozenset[Compares] = frozenset({"paired", "projected", "substages", "deepest", "graft"})  # these need pairs
GRAFT: frozenset[Compares] = frozenset({"graft"})
EMBEDDED: frozenset[Compares] = frozenset({"embedding", "projected_embedding"})  # these need all blocks, and no pairs
WITH_TEACHER: frozenset[Compares] = LOGITS | FEATURES | EMBEDDED  # these need a teacher

OF_THE_STEP = frozenset({"weigh", "standardise"})  # fields that the step uses, and no loss function


class Loss(Section):
    """A loss with its weight, which may change over the phase. A bare number is a constant weight."""

    bare: ClassVar[str | None] = "weight"
    compares: ClassVar[Compares]  # every loss sets it, or defines `compared` by its fields
    takes_labels: ClassVar[bool] = False  # a loss on logits that is also given the labels
    given_labels: ClassVar[bool] = False  # a loss on the given labels alone: clips without one are left out
    weight: Weight = 1.0
    """Factor of the loss in the sum of losses."""
    schedule: Literal["linear", "cosine"] | None = None
    """How the weight changes from `weight` to `to` over the phase. Unset: it is constant."""
    to: Annotated[float, Field(ge=0, lt=1e9)] | None = None
    """Weight at the end of the phase, if `schedule` is set."""
    warmup_epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Epochs over which the weight rises linearly from 0. This factor is applied on top of `schedule`."""
    warmup_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """As `warmup_epochs`, as a fraction of the epochs of the phase."""

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return {"weight": value}
        return value

    @model_validator(mode="after")
    def _both_ends(self) -> Self:
        if (self.schedule is None) != (self.to is None):
            raise ValueError("schedule and to must be set together, for example {weight: 1, schedule: linear, to: 0}")
        if self.warmup_epochs is not None and self.warmup_share is not None:
            raise ValueError("warmup_epochs and warmup_share say the same: keep one of them")
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if not {"compares", "compared", "abstract"} & vars(cls).keys():
            raise TypeError(f"the loss {cls.__name__} does not set what it compares: add compares = ...")

    @property
    def compared(self) -> Compares:
        """The things that the loss compares."""
        return self.compares

    @property
    def least_batch(self) -> int:
        """The smallest batch, in clips, on which the loss can be computed."""
        return 1

    @property
    def weighing(self) -> Any:
        """How the clips are weighed: `confidence`, `entropy` or a table (`ClipLoss`); None if all weigh the same."""
        return None

    @property
    def standardised(self) -> bool:
        """Whether the logits of both networks are standardised first (`LogitLoss`)."""
        return False

    @property
    def unweighable(self) -> str:
        """Why the loss has no value for each clip, so that clips cannot have weights in it; "" if it has."""
        return ""

    @property
    def params(self) -> dict[str, Any]:
        """The arguments of the loss function: all fields except those of the weight, of the step and of the user's
        file."""
        return self.model_dump(exclude={*Loss.model_fields, *OF_THE_STEP, "path", "on", "args", "digest"})
