"""The user's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from stagedkd.spec.schema.base import Word
from stagedkd.spec.schema.losses.base import Compares, Loss


class FileLoss(Loss):
    """A loss of your own. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    path: Word
    """The Python file, in the project folder, with a function `loss(student, teacher, **args)` that returns a
    scalar."""
    on: Literal["logits", "features"] = "logits"
    """Arguments of the function. logits: the logits (B, N). features: each pair of feature maps (B, C, T, H, W), on
    their common grid."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of `loss`."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key

    @property
    def compared(self) -> Compares:
        return "logits" if self.on == "logits" else "paired"
