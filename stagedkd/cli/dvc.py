"""`stagedkd dvc ...` writes DVC's pipeline; `stagedkd stage KEY` is what that pipeline calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagedkd.cli.common import Quiet, Verbose, print_lines, print_notes, progress

if TYPE_CHECKING:
    from stagedkd.experiment.run import GridOutcome

app = typer.Typer(no_args_is_help=True, help="Keep dvc.yaml in step with the specs that params.yaml names.")


@app.command()
def sync(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if something would change.")] = False,
    no_commit: Annotated[bool, typer.Option("--no-commit", help="Do not tell DVC what the store has.")] = False,
) -> None:
    """Write dvc.yaml for the specs that params.yaml names, without changing stages that you wrote."""
    from stagedkd.dvc.sync import sync as write

    print_lines(write(_root(), check=check, commit=not no_commit))


@app.command()
def guard() -> None:
    """Fail if dvc.yaml does not match the specs; DVC calls this first."""
    from stagedkd.dvc.sync import guard as require_fresh

    require_fresh(_root())


def stage(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Run the stage whose key starts with this.", show_default=False)
    ],
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run one stage of dvc.yaml unless the store has it; this is what DVC calls."""
    from stagedkd.dvc.sync import find_stage
    from stagedkd.experiment.run import run_stage
    from stagedkd.plan.runtime import load_runtime

    root = _root()
    plan, wanted = find_stage(root, key)
    with progress(verbose - quiet) as listener:
        artifact, ran = run_stage(plan, wanted, load_runtime(root), listener)
    if not ran:
        print_lines([f"nothing to do: {os.path.relpath(artifact.folder)} is in the store"])


def commit_run(outcome: GridOutcome, spec: Path | None, *, wrote: bool) -> None:
    """Tell DVC about a run, if the project uses DVC, and print what came of it."""
    from stagedkd.dvc.sync import commit_run as commit

    print_notes(commit(outcome.plans, outcome.ran, outcome.runtime, spec, wrote=wrote))


def _root() -> Path:
    from stagedkd.spec.load import specs_root

    return specs_root(Path.cwd() / "params.yaml")
