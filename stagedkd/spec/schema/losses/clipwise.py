"""Losses that have a value for each clip: their clips can have weights, and logits can be standardised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, Tag, field_validator

from stagedkd.spec.schema.base import Section, Word, by_form
from stagedkd.spec.schema.losses.base import Loss
from stagedkd.spec.schema.networks.base import DigestOf, put_file_digest


class WeightFile(Section):
    """Weights of the training clips, from a table of yours. Its content enters the key."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"file"})
    file: Word
    """The table, in the project folder, with the columns `path` and `weight`, separated by commas: a row for each
    training clip, with its path in the data folder (`shapes:0`, `shapes:1`, ... of a simulator) and a weight of 0 or
    more."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key


Weigh: TypeAlias = Annotated[
    Annotated[Literal["confidence", "entropy"], Tag("word")] | Annotated[WeightFile, Tag("map")],
    by_form("confidence, entropy or {file: weights.csv}"),
]


class ClipLoss(Loss):
    """A loss that is a mean over clips, so that each clip can have a weight in it."""

    abstract: ClassVar[bool] = True  # the base of several losses

    weigh: Weigh | None = None
    """Weights of the clips; they are scaled to a mean of 1 over the clips of the batch that count. confidence: the
    teacher's probability of the given label, in a loss on given labels; else its largest probability. entropy: 1 - H /
    log N, with the entropy H of the teacher's probabilities. file: a table of weights. Unset: all clips weigh 1."""

    @property
    def weighing(self) -> Literal["confidence", "entropy"] | WeightFile | None:
        return self.weigh


class LogitLoss(ClipLoss):
    """A loss on the logits of both networks."""

    abstract: ClassVar[bool] = True  # the base of several losses

    standardise: bool | None = None
    """true: the logits of each clip are first brought to zero mean and unit standard deviation over the classes, in
    both networks (Sun et al. 2024)."""

    @field_validator("standardise", mode="after")
    @classmethod
    def _unset(cls, value: bool | None) -> bool | None:
        return value or None  # false means what unset means, so both have one key

    @property
    def standardised(self) -> bool:
        return bool(self.standardise)


def put_weights_digest(values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
    """Put the digest of the table `file` into the values of a `weigh` section; see `Architecture.put_digest`."""
    return put_file_digest(values, "file", "a table", root, digest_of)
