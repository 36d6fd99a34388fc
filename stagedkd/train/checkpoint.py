"""Checkpoints: everything that a training needs to resume to the same bits. A kill leaves the last one whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from stagedkd.errors import TrainingError

NAME = "checkpoint.pt"
FORMAT = 2  # of what is saved; a checkpoint of another format is refused


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write to a file beside, flush, rename. A write that fails leaves the previous checkpoint.

    Raises:
        TrainingError: the disk is full or refuses.
    """
    temporary = folder / (NAME + ".tmp")
    try:
        with temporary.open("wb") as stream:
            torch.save({"format": FORMAT, **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / NAME)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        hint = "free some space; the same command resumes from the last checkpoint"
        free = f"{shutil.disk_usage(folder).free:,} bytes free"  # torch hides the system's own message
        raise TrainingError(f"cannot write the checkpoint in {folder} ({free}): {error}", hint=hint) from error


def load(folder: Path) -> dict[str, Any] | None:
    """The last checkpoint, on the CPU, or None.

    Raises:
        TrainingError: it cannot be read, or another version of stagedkd wrote it.
    """
    path = folder / NAME
    hint = f"remove {path} to train this stage from its start"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken file
        raise TrainingError(f"{path} cannot be read: {str(error).splitlines()[0]}", hint=hint) from error
    if state.get("format") != FORMAT:
        raise TrainingError(f"{path} was written by another version of stagedkd", hint=hint)
    return state


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators that dropout and stochastic depth draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the states that `rng_state` gave; the generator of another kind of device is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
