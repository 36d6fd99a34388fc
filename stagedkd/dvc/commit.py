"""Commit stages of dvc.yaml to DVC in one call of its command line.

For several targets, DVC reads and writes dvc.yaml and dvc.lock once for each of them, and for a whole file it takes the
user's stages, too, and fails if one out is missing. So the stages that are meant are written to a dvc.yaml in a folder
of its own, DVC commits that file, and the dvc.lock beside it is merged into the project's. DVC's analytics are off in
the process that is started here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stagedkd.dvc.pipeline import DvcStage, render
from stagedkd.dvc.text import merged
from stagedkd.errors import StaleError
from stagedkd.files import locked, write_whole

FOLDER = "stagedkd-commit"  # no dot before it: DVC reads no file that Git or DVC ignores
HEADER = "# Written by stagedkd while it commits stages to DVC. If nothing runs, remove this folder.\nstages:\n"


def commit_stages(root: Path, store: str, stages: Sequence[DvcStage]) -> str:
    """Commit stages whose files all exist, and no others, with one call of DVC. Returns its error in one line, or "".

    Args:
        root: the project's folder. store: the folder of the store, relative to it.
    Raises:
        StaleError: dvc.lock cannot be read.
    """
    with _exclusive(root, store):
        folder = root / FOLDER
        folder.mkdir()
        text = HEADER + "".join(line + "\n" for line in render(stages, 2, wdir=".."))
        write_whole(folder / "dvc.yaml", text)
        problem = run_dvc(root, "commit", "-f", f"{FOLDER}/dvc.yaml")
        if problem:
            return problem
        fresh = (folder / "dvc.lock").read_bytes().decode("utf-8")
        write_whole(root / "dvc.lock", merged(read_text(root / "dvc.lock"), fresh))
    return ""


def remove_remains(root: Path, store: str) -> None:
    """Remove what a killed commit has left, which would keep DVC from reading the project."""
    if (root / FOLDER).is_dir():
        with _exclusive(root, store):
            pass


def run_dvc(root: Path, *arguments: str) -> str:
    """Run DVC's command line. Returns its error in one line, or "" if it succeeded."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]  # the option -q would hide these
    return errors[0] if errors else f"dvc ended with {result.returncode}"


def read_text(path: Path) -> str:
    """The text of dvc.yaml or dvc.lock, with its line ends unchanged; "" if the file does not exist.

    Raises:
        StaleError: it cannot be read.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StaleError(f"{path} cannot be read: {error}", hint="correct it, then run: stagedkd dvc sync") from None


@contextmanager
def _exclusive(root: Path, store: str) -> Generator[None]:
    """Inside, no other process of stagedkd commits here. The folder is removed before and after."""
    guard = root / store / ".work" / "dvc.lock"  # of this process, not DVC's
    with locked(guard):
        shutil.rmtree(root / FOLDER, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(root / FOLDER, ignore_errors=True)
