"""The exception tree. Every error says what is wrong, where, and what to do next.

StagedkdError                   exit 1
|-- UsageError                  exit 2   arguments are wrong
|-- SpecError                   exit 2   the spec is wrong: carries every Problem with its place
|-- LockError                   exit 2   the data or weights differ from stagedkd.lock
|-- StaleError                  exit 2   dvc.yaml does not match the specs, or cannot be read
|-- DataError                   exit 1   clips cannot be read, or too many are bad
|-- StoreError                  exit 1   an artifact is missing, cut or tampered with
|-- TrainingError               exit 1   training cannot continue (NaN loss, no memory, no space)
`-- Interrupted                 exit 128 + signal
"""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Place:
    """A place in a YAML file. `line` and `column` count from 1; `width` is the number of characters to underline."""

    file: str
    line: int
    column: int
    width: int
    text: str  # the whole source line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def as_json(self) -> dict[str, object]:
        """Return plain values for editors."""
        end = self.column + self.width
        return {"file": self.file, "line": self.line, "column": self.column, "end_column": end}


@dataclass(frozen=True)
class Problem:
    """One problem in a spec: what is wrong (`message`), where (`place`), and what to do about it (`hint`, shown after
    the caret). `related` lists further places with a description, such as the value that was overridden."""

    message: str
    place: Place | None = None
    hint: str = ""
    related: tuple[tuple[str, Place], ...] = ()
    severity: Literal["error", "warning", "note"] = "error"

    def render(self) -> str:
        """Render the problem as a compiler would: message, place, source line and caret."""
        first = f"{self.severity}: {self.message}"
        if self.place is None:
            return first + (f"\n  help: {self.hint}" if self.hint else "")
        place, gutter = self.place, " " * len(str(self.place.line))
        text, column = _excerpt(place.text, place.column)
        caret = " " * (column - 1) + "^" * max(1, min(place.width, len(text) - column + 1))
        lines = [
            first,
            f"{gutter}--> {place}",
            f"{place.line} | {text}",
            f"{gutter} | {caret}" + (f" {self.hint}" if self.hint else ""),
            *(f"{gutter} = {what} {where}" for what, where in self.related),
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """Return plain values for editors. Lines and columns count from 1; `end_column` is the one after the last."""
        values: dict[str, object] = {"severity": self.severity, "message": self.message, "hint": self.hint}
        if self.place is not None:
            values |= self.place.as_json()
        return values | {"related": [{"message": what, **where.as_json()} for what, where in self.related]}


def _excerpt(text: str, column: int, limit: int = 100) -> tuple[str, int]:
    """Cut a long source line around `column`, so that the caret stays in view. Return the text and the new column."""
    if len(text) <= limit:
        return text, column
    start = max(0, column - 1 - limit // 2)
    prefix = "..." if start else ""
    return prefix + text[start : start + limit], column - start + len(prefix)


@dataclass(frozen=True)
class Origin:
    """The file of a spec and the options that it was loaded with, so that a hint can name them.

    It is no part of what a spec means, so all origins are equal. `file` is "" if the spec is from no file. `options`
    are those that every command on a spec takes (`--set`, `--cell`); `further` holds those that only some take, by
    command.
    """

    file: str = field(default="", compare=False)
    options: tuple[str, ...] = field(default=(), compare=False)
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]], compare=False)

    def command(self, name: str) -> str:
        """Return the command line that calls `stagedkd name` on the spec, quoted for the shell."""
        if not self.file:
            return f"stagedkd {name} SPEC"
        file = f"./{self.file}" if self.file.startswith("-") else self.file
        return shlex.join(["stagedkd", name, file, *self.options, *self.further.get(name, ())])


@dataclass(frozen=True)
class Advice:
    """A hint. If it has a `command`, it ends in that command on the spec at hand, which the error knows."""

    words: str
    command: Literal["", "lock", "plan", "report", "run"] = ""

    def about(self, origin: Origin) -> str:
        """Return the hint for a spec."""
        return f"{self.words}: {origin.command(self.command)}" if self.command else self.words


class StagedkdError(Exception):
    """Base of all errors that a user can fix. `hint` is the next command or edit. `origin` is set by `about`."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | Advice = "") -> None:
        super().__init__(message)
        self.message, self.origin = message, Origin()
        self.advice = hint if isinstance(hint, Advice) else Advice(hint)

    @property
    def hint(self) -> str:
        """The next command or edit, which names the spec at hand."""
        return self.advice.about(self.origin)

    def render(self) -> str:
        """Render the error as plain text for the terminal."""
        return f"error: {self.message}" + (f"\n  help: {self.hint}" if self.hint else "")


class UsageError(StagedkdError):
    """The command's arguments are wrong."""

    exit_code = 2


class SpecError(StagedkdError):
    """The spec is wrong. The error carries all problems, in the order of the file."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(p.message for p in self.problems))

    def render(self) -> str:
        count = len(self.problems)
        tail = "" if count == 1 else f"\n\n{count} errors"
        return "\n\n".join(p.render() for p in self.problems) + tail


class LockError(StagedkdError):
    """The data or weights on the disk differ from `stagedkd.lock`."""

    exit_code = 2


class StaleError(StagedkdError):
    """dvc.yaml does not match the specs, or cannot be read."""

    exit_code = 2


class DataError(StagedkdError):
    """Clips cannot be read, or too many of them are bad."""


class StoreError(StagedkdError):
    """An artifact is missing, cut or tampered with."""


class TrainingError(StagedkdError):
    """Training cannot continue."""


class Interrupted(StagedkdError):
    """A signal asked the run to stop; what was written stays. The hint names a checkpoint only where there is one."""

    def __init__(
        self, signal_number: int, message: str, *, hint: str | Advice = "run the same command to continue"
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


@contextmanager
def about(origin: Origin) -> Generator[None]:
    """Inside, an error learns the spec that it is about, unless it knows one."""
    try:
        yield
    except StagedkdError as error:
        if not error.origin.file:
            error.origin = origin
        raise
