"""The exception tree. Every error says what is wrong, where, and what to do next.

StagedkdError                   exit 1
|-- UsageError                  exit 2   arguments are wrong
|-- SpecError                   exit 2   the spec is wrong: carries every Problem with its place
|-- LockError                   exit 2   the data or weights differ from stagedkd.lock
|-- StaleError                  exit 2   dvc.yaml does not match the specs, or cannot be read
|-- DataError                   exit 1   clips cannot be read, or too many are bad
|-- StoreError                  exit 1   an artifact is missing, cut or tampered with
|-- TrainingError               exit 1   training cannot continue (NaN loss, no memory, no space)
|-- HostError                   exit 1   the machine refuses something: the disk is full, a right is missing, no locks
`-- Interrupted                 exit 128 + signal

`about` and `host_error` turn what the machine refuses into a HostError. They are the only place that knows the numbers
of the system's errors.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text for a terminal: control characters but tabs and line ends are escaped, so that a name from a file
    cannot give orders to the terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


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


class HostError(StagedkdError):
    """The machine refuses something that stagedkd needs: a file, a right, space, a lock, a thread, memory."""


class Interrupted(StagedkdError):
    """A signal asked the run to stop; what was written stays. The hint names a checkpoint only where there is one."""

    def __init__(
        self, signal_number: int, message: str, *, hint: str | Advice = "run the same command to continue"
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signal_number


_NO_LOCKS = "keep the project, its cache and its store on a file system with file locks (NFS: start its lock service)"
_RIGHTS = "get the right to it from its owner (a folder that a group shares: chmod -R g+rwX, and umask 002 for all)"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space: your quota is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "mount its file system for writing",
    errno.ENOENT: "restore it, or correct its name",
    errno.EEXIST: "move what is there out of the way",
    errno.ENOTDIR: "move the file away that lies where a folder must be",
    errno.EISDIR: "move the folder away that lies where a file must be",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "correct the links, which lead in a circle",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "end programs that hold many files open, or use fewer workers",
    errno.EAGAIN: "raise the limit on processes (ulimit -u), or use fewer threads, workers or jobs",
    errno.ENOMEM: "free some memory, or use fewer workers or jobs",
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EIO: "check the disk, or the connection to it",
    errno.ESTALE: "mount the network file system again",
}


def remedy(error: OSError) -> str:
    """Return what to do about an error of the system, as the first part of a hint."""
    return _REMEDIES.get(error.errno or 0, "correct this")


def host_error(error: BaseException) -> HostError | None:
    """Return the error for what the machine refused: a file, space, a right, memory or a thread. None if `error` is of
    another kind, or says that the reader of a pipe has gone."""
    if isinstance(error, MemoryError):
        return HostError("the memory is used up", hint="free some memory, or use fewer workers or jobs")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return HostError("no more threads can be started", hint=_REMEDIES[errno.EAGAIN])
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # of Path.resolve, before Python 3.13
        return HostError(str(error), hint=_REMEDIES[errno.ELOOP])
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return HostError(f"a library cannot be loaded: {error}", hint="free some memory, or install stagedkd again")
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # of a library in Rust, such as safetensors
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    if not isinstance(error, OSError) or error.errno is None or isinstance(error, BrokenPipeError):
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = " -> ".join(names) or "the system says"
    return HostError(f"{what}: {error.strerror or error}", hint=f"{remedy(error)}, then run the same command again")


@contextmanager
def about(origin: Origin) -> Generator[None]:
    """Inside, what the machine refuses is raised as a HostError, and an error learns the spec that it is about, unless
    it knows one."""
    try:
        yield
    except Exception as error:
        ours = error if isinstance(error, StagedkdError) else host_error(error)
        if ours is None:
            raise
        if not ours.origin.file:
            ours.origin = origin
        if ours is error:
            raise
        raise ours from error
