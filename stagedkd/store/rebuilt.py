"""The outcome of rebuilding a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rebuilt:
    """The outcome of rebuilding a result.

    Attributes:
        stages: the stages that were rebuilt.
        compared: the differences found, by what was compared: an artifact (`<kind>-<key12>`) or a file.
        bare: stages that could not be compared since their original is not here.
        environment: differences between the original's environment and this one; None if the original has no run.json.
    """

    stages: tuple[str, ...]
    compared: Mapping[str, tuple[str, ...]]
    bare: tuple[str, ...]
    environment: tuple[str, ...] | None

    @property
    def differs(self) -> bool:
        """Whether any comparison found a difference."""
        return any(self.compared.values())
