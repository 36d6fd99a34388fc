"""Checkpoints: everything that a training needs to resume with the same bits. A kill or a power loss leaves the last
one intact; a damaged one is refused.

The file is what torch.save writes, sealed by a digest at its end (files.py). No earlier checkpoint is kept beside it:
it would double the disk space of a training for a fault that is rare, and that costs one stage.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from stagedkd.errors import TrainingError
from stagedkd.files import DamagedError, flush, seal, unsealed

NAME = "checkpoint.pt"
FORMAT = 3  # of what is saved; a checkpoint of another format is refused


class _Hashing:
    """A file that is written and hashed at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.sha256 = stream, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def save(folder: Path, state: dict[str, Any]) -> int:
    """Write a temporary file, flush it, rename it. A write that fails leaves the previous checkpoint.

    Returns:
        the size of the file in bytes.
    Raises:
        TrainingError: the file cannot be written, for example on a full disk.
    """
    temporary = folder / (NAME + ".tmp")
    try:
        with temporary.open("wb") as stream:
            hashing = _Hashing(stream)
            torch.save({"format": FORMAT, **state}, cast("BinaryIO", hashing))
            stream.write(seal(hashing.sha256.hexdigest()))
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        temporary.replace(folder / NAME)
        flush(folder)
        return size
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        hint = "free some space; the same command resumes from the last checkpoint"
        free = f"{shutil.disk_usage(folder).free:,} bytes free"  # torch hides the system's message
        raise TrainingError(f"cannot write the checkpoint in {folder} ({free}): {error}", hint=hint) from error


def load(folder: Path) -> dict[str, Any] | None:
    """Load the last checkpoint on the CPU; None if there is none.

    Raises:
        TrainingError: it cannot be read, is damaged, or another version of stagedkd wrote it.
    """
    path = folder / NAME
    hint = f"remove {path} to train this stage from the start"
    if not path.exists():
        return None
    try:
        content = unsealed(path.read_bytes())
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DamagedError as error:
        raise TrainingError(f"{path} {error}", hint=hint) from None
    except Exception as error:  # torch raises many types of errors for a broken file
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
    """Restore the states from `rng_state`. The generator of another kind of device stays as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
