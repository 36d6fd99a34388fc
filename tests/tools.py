"""Helpers of the tests."""

from __future__ import annotations

from pathlib import Path

from stagedkd.stages.context import Silent


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def files_of(store: Path) -> dict[str, bytes]:
    """The deterministic files of all artifacts of a store; fails where there are none."""
    found = {name: content for name, content in file_bytes(store).items() if "/files/" in name and name[0] != "."}
    assert found
    return found


class Heard(Silent):
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
