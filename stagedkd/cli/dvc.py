"""`stagedkd dvc ...` and `stagedkd stage KEY`: what DVC's pipeline is made by, and what it calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagedkd.cli.common import Quiet, Verbose, notes, progress, say

if TYPE_CHECKING:
    from stagedkd.experiment.run import GridOutcome

app = typer.Typer(no_args_is_help=True, help="Keep dvc.yaml in step with the specs that params.yaml names: sync.")


@app.command()
def sync(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where something would change.")] = False,
    no_commit: Annotated[bool, typer.Option("--no-commit", help="Do not tell DVC of what the store has.")] = False,
) -> None:
    """Write dvc.yaml for the specs that params.yaml names; a user's own stages stay as they are."""
    from stagedkd.dvc.sync import sync as write

    say(write(_root(), check=check, commit=not no_commit))


@app.command()
def guard() -> None:
    """Fail where dvc.yaml is not what the specs say. DVC calls this before all else."""
    from stagedkd.dvc.sync import guard as hold

    hold(_root())


def stage(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its key, or the begin of it.", show_default=False)],
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run one stage of the pipeline that dvc.yaml holds, unless the store has it. This is what DVC calls."""
    from stagedkd.dvc.sync import find_stage
    from stagedkd.experiment.run import run_stage
    from stagedkd.plan.runtime import load_runtime

    root = _root()
    plan, found = find_stage(root, key)
    with progress(verbose - quiet) as shown:
        artifact, ran = run_stage(plan, found, load_runtime(root), shown)
    if not ran:
        say([f"nothing to do: {os.path.relpath(artifact.folder)} is in the store"])


def commit_run(outcome: GridOutcome, spec: Path | None, *, wrote: bool) -> None:
    """Tell DVC of a run, where the project uses it, and print what is to be said about that."""
    from stagedkd.dvc.sync import commit_run as tell

    notes(tell(outcome.plans, outcome.ran, outcome.runtime, spec, wrote=wrote))


def _root() -> Path:
    from stagedkd.spec.load import specs_root

    return specs_root(Path.cwd() / "params.yaml")
