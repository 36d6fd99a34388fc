"""What came of rebuilding a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rebuilt:
    """`stages`: the rebuilt ones; `compared`: faults by what was compared, an artifact (`<kind>-<key12>`) or a file;
    `bare`: stages of which no original is here; `environment`: what differs between there and here, None where no
    run.json of the original says it."""

    stages: tuple[str, ...]
    compared: Mapping[str, tuple[str, ...]]
    bare: tuple[str, ...]
    environment: tuple[str, ...] | None

    @property
    def differs(self) -> bool:
        return any(self.compared.values())
