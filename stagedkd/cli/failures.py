"""What the command line says of an error that ends a command, and the exit code."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import version as version_of
from pathlib import Path
from platform import python_version

from stagedkd._version import __version__
from stagedkd.errors import StagedkdError, host_error, printable

UNFORESEEN = 70  # the exit code of an error that nobody foresaw (EX_SOFTWARE)
PACKAGE = Path(__file__).resolve().parent.parent


def versions() -> str:
    """The versions of stagedkd, of Python and of torch, without importing torch."""
    return f"stagedkd {__version__} (Python {python_version()}, torch {version_of('torch')})"


def was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: a library in another language, such as pydantic's, may turn the
    KeyboardInterrupt of a callback into an error of its own, which names it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or KeyboardInterrupt.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def print_error(error: Exception) -> int:
    """Print an error for the user, with the traceback if -v asks for one. Returns the exit code."""
    _drop_unwritten()
    ours = error if isinstance(error, StagedkdError) else host_error(error)
    print(printable(ours.render() if ours else unforeseen(error)), file=sys.stderr)
    if {"-v", "--verbose"} & set(sys.argv) and (ours is None or error.__cause__ is not None):
        traceback.print_exception(error)
    return ours.exit_code if ours else UNFORESEEN


def _drop_unwritten() -> None:
    """Drop what stdout cannot take, for example on a full disk: Python would fail again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unforeseen(error: Exception) -> str:
    """Describe an error that nobody foresaw: what it is, the version, and the last line of our code that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    place = f"{Path(ours[-1].filename).relative_to(PACKAGE.parent)}:{ours[-1].lineno}" if ours else "an unknown place"
    words = (str(error).splitlines() or [""])[0][:500]
    return (
        f"internal error: {type(error).__name__}: {words}\n"
        f"  at {place}, {versions()}\n"
        "  help: this is a fault of stagedkd: please report these lines with the command; what is finished stays"
    )
