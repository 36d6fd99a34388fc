"""`stagedkd data ...`: look at a data set, or export a simulated one as videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stagedkd.cli.common import (
    AsJson,
    Cells,
    Command,
    DataDir,
    Overrides,
    SpecPath,
    console,
    load_cell,
    print_lines,
    progress,
    runtime_of,
)
from stagedkd.errors import DataError, UsageError

if TYPE_CHECKING:
    from stagedkd.plan.runtime import Runtime
    from stagedkd.spec.schema import Spec

app = typer.Typer(no_args_is_help=True, help="Look at a data set, or export a simulated one as videos.")


@app.command(cls=Command)
def index(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Count the clips of each class and split, and list copies and missing files."""
    from stagedkd.experiment.survey import survey
    from stagedkd.report.terminal import survey_lines, survey_table

    loaded, runtime = _load(spec, overrides, cells, data_dir)
    with progress() as listener:
        result = survey(loaded, runtime, listener)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
        return
    console().print(survey_table(result.counts, result.groups))
    print_lines(survey_lines(result.__dict__))


@app.command(cls=Command)
def verify(spec: SpecPath, overrides: Overrides = None, cells: Cells = None, data_dir: DataDir = None) -> None:
    """Compare the clip cache with a fresh decode of every file."""
    from stagedkd.experiment.survey import verify as compare

    loaded, runtime = _load(spec, overrides, cells, data_dir)
    with progress() as listener:
        count, problems = compare(loaded, runtime, listener)
    if problems:
        rows = "\n    ".join(problems[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else []))
        hint = "if the videos are right, delete the cache's folder; the next run rebuilds it"
        raise DataError(f"{len(problems)} of {count} cached clips differ from their files:\n    {rows}", hint=hint)
    print_lines([f"{count} cached clips equal a fresh decode"])


@app.command(cls=Command)
def preview(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write to this folder instead of results/<name>/preview."),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, max=12, help="Show this many clips of each class.")] = 4,
) -> None:
    """Draw a contact sheet and an animation of each class, with labels and augmentations."""
    from stagedkd.experiment.survey import preview as draw

    loaded, runtime = _load(spec, overrides, cells, data_dir)
    folder = out or runtime.folder("results") / loaded.name / "preview"
    with progress() as listener:
        sheet, *animations = draw(loaded, runtime, listener, folder, clips)
    print_lines([f"wrote {sheet} and, beside it, {len(animations)} animations"])


@app.command(cls=Command)
def export(
    spec: SpecPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Write to this new folder.", show_default=False)],
    overrides: Overrides = None,
    cells: Cells = None,
    layout: Annotated[
        Literal["ucf101", "hmdb51"], typer.Option("--layout", help="Arrange the videos like this data set.")
    ] = "ucf101",
    lists: Annotated[
        Path | None,
        typer.Option(
            "--lists",
            metavar="DIR",
            help="Name the videos as in the official lists in this folder.",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=0, help="Write this many frames per video; 0 takes the spec's.")
    ] = 0,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Write frames of this size instead of the spec's.")
    ] = "",
) -> None:
    """Write a simulated data set as video files."""
    from stagedkd.spec.schema import Simulated

    loaded, runtime = _load(spec, overrides, cells, None)
    if not isinstance(loaded.data, Simulated):
        raise UsageError(f"{spec} has no simulated data", hint="set data.kind to shapes or figures")
    side = loaded.clip.shorter_side + loaded.clip.shorter_side % 2
    width, height = _size(size) if size else (side, side)
    if lists and not any(lists.glob("*.txt")):
        raise UsageError(f"there are no lists (*.txt) in {lists}")
    if width % 2 or height % 2:
        raise UsageError(f"--size {width}x{height}: both sides must be even", hint="round them up")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists", hint="name a new folder")
    from stagedkd.data.export import Look
    from stagedkd.data.export import export as write

    data, fps = loaded.data, loaded.data.domain.fps
    look = Look(frames or max(1, round(data.seconds * fps)), height, width, fps)
    with progress() as listener:
        count = write(
            data, out, layout, lists, look, runtime.workers or 2, lambda *at: listener.count("videos written", *at)
        )
    path, data_dir = out.resolve(), runtime.folder("data_dir")
    path = path.relative_to(data_dir) if path.is_relative_to(data_dir) else path
    print_lines([f"wrote {count:,} videos of {look.frames} frames, {width}x{height}"])
    print_lines([f"use them with: data: {{kind: {layout}, path: {path}}}"])


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text} is not of the form WIDTHxHEIGHT, such as 320x240")
    return int(width), int(height)


def _load(
    path: Path, overrides: list[str] | None, cells: list[str] | None, data_dir: Path | None
) -> tuple[Spec, Runtime]:
    return load_cell(path, overrides, cells).cells[0].spec, runtime_of(path, data_dir=data_dir)
