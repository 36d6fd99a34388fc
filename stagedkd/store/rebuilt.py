"""The outcome of rebuilding a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagedkd.plan.cpus import AVX2_KERNELS


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
    def hint(self) -> str:
        """What gives the same bits; "" if nothing of the environment differs, so that this is not known."""
        if self.environment == ():
            return ""
        hint = "rebuild it in the same environment to get the same bits"
        older = ("cpu_capability: AVX2 there, AVX512", "cpu_capability: unknown there, AVX512")
        missing = self.environment is None or any("its run.json is missing" in line for line in self.environment)
        if missing or any(line.startswith(older) for line in self.environment or ()):
            hint += f"; for a result of a CPU with AVX2 on one with newer instructions, set {AVX2_KERNELS} before"
        return hint

    @property
    def differs(self) -> bool:
        """Whether any comparison found a difference."""
        return any(self.compared.values())
