"""Section `train`, and its overrides in a network or a phase."""

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
    """The training of a network. The learning-rate schedule restarts with each phase."""

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
    """Schedule of the learning rate. cosine: falls to 0 by the end of the phase. constant: stays at `lr`."""
    warmup_epochs: Warmup = 0.0
    """Epochs of linear warm-up at the start of a phase."""
    precision: Precision = "fp32"
    """Precision of autocast; losses are computed in at least fp32."""
    clip_grad: Norm = 1.0
    """Largest gradient norm; larger gradients are scaled down. 0: no limit."""
    ema: Below1 = 0.0
    """Decay of the moving average of the weights. The average restarts with each phase. If the last phase has one, it
    is the result. 0: no average."""

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
