"""Section `train`, and its overrides at a network or a phase."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from stagedkd.spec.schema.base import Section

Batch: TypeAlias = Annotated[int, Field(ge=1, le=65536)]
Rate: TypeAlias = Annotated[float, Field(gt=0, lt=100)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=10)]
Below1: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Optimizer: TypeAlias = Literal["adamw", "sgd"]
Schedule: TypeAlias = Literal["cosine", "constant"]
Warmup: TypeAlias = Annotated[float, Field(ge=0, le=1000)]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Norm: TypeAlias = Annotated[float, Field(ge=0, lt=1e9)]


class Train(Section):
    """How a network is trained. The schedule restarts with each phase."""

    batch: Batch = 32
    """Clips in a step. An epoch is ceil(training clips / batch) steps, whichever clips a loss uses."""
    lr: Rate = 1e-3
    """Peak learning rate of the schedule."""
    weight_decay: Decay = 0.05
    """Weight decay, decoupled in adamw (Loshchilov & Hutter 2019)."""
    optimizer: Optimizer = "adamw"
    """The optimizer."""
    momentum: Below1 = 0.9
    """Momentum of sgd."""
    schedule: Schedule = "cosine"
    """cosine falls to 0 by the end of the phase; constant stays."""
    warmup_epochs: Warmup = 0.0
    """Epochs of linear warm-up at the start of a phase."""
    precision: Precision = "fp32"
    """Precision of autocast; losses are computed in at least fp32."""
    clip_grad: Norm = 1.0
    """Largest gradient norm; 0: none."""
    ema: Below1 = 0.0
    """Decay of averaged weights, which restart with each phase and are the result where the last phase has them;
    0: none."""

    def patched(self, *patches: TrainPatch) -> Train:
        """This with the set fields of each patch laid over it, in order: nearest last."""
        values = self.model_dump()
        for patch in patches:
            values |= patch.model_dump(exclude_none=True)
        return Train(**values)


class TrainPatch(Section):
    """Overrides of `train` at one teacher, assistant, student or phase; the nearest wins. All fields of `train`, each
    unset unless given."""

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
