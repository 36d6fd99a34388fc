"""`stagedkd data ...`: looking at data sets, and making them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stagedkd.cli.common import (
    AsJson,
    Cells,
    DataDir,
    Overrides,
    SpecPath,
    console,
    load_cell,
    progress,
    runtime_of,
    say,
)
from stagedkd.errors import DataError, UsageError

if TYPE_CHECKING:
    from stagedkd.plan.runtime import Runtime
    from stagedkd.spec.schema import Spec

app = typer.Typer(no_args_is_help=True, help="Look at a data set: index, verify, preview, export.")


@app.command()
def index(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Count clips per class and split; list copies by content, and what is missing."""
    from stagedkd.experiment.survey import survey
    from stagedkd.report.terminal import survey_lines, survey_table

    made, runtime = _load(spec, overrides, cells, data_dir)
    with progress() as shown:
        found = survey(made, runtime, shown)
    if as_json:
        print(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    console().print(survey_table(found.counts, found.groups))
    say(survey_lines(found.__dict__))


@app.command()
def verify(spec: SpecPath, overrides: Overrides = None, cells: Cells = None, data_dir: DataDir = None) -> None:
    """Reread the clip cache, and compare it with a fresh decode of every file."""
    from stagedkd.experiment.survey import verify as compare

    made, runtime = _load(spec, overrides, cells, data_dir)
    with progress() as shown:
        count, faults = compare(made, runtime, shown)
    if faults:
        rows = "\n    ".join(faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else []))
        hint = "if the videos are right, remove the cache's folder; the next run builds it anew"
        raise DataError(f"{len(faults)} of {count} cached clips differ from their files:\n    {rows}", hint=hint)
    say([f"{count} cached clips are those of a fresh decode"])


@app.command()
def preview(
    spec: SpecPath,
    overrides: Overrides = None,
    cells: Cells = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where: results/<name>/preview.")] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, max=12, help="Clips of each class.")] = 4,
) -> None:
    """Draw a contact sheet, and an animation of each class, with labels and augmentations."""
    from stagedkd.experiment.survey import preview as draw

    made, runtime = _load(spec, overrides, cells, data_dir)
    folder = out or runtime.folder("results") / made.name / "preview"
    with progress() as shown:
        written = draw(made, runtime, shown, folder, clips)
    say([f"wrote {written[0]} and {len(written) - 1} animations beside it"])


@app.command()
def export(
    spec: SpecPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.", show_default=False)],
    overrides: Overrides = None,
    cells: Cells = None,
    layout: Annotated[Literal["ucf101", "hmdb51"], typer.Option("--layout", help="ucf101 or hmdb51.")] = "ucf101",
    lists: Annotated[
        Path | None,
        typer.Option(
            "--lists",
            metavar="DIR",
            help="Official lists, whose videos are written; the simulator's classes stand for theirs in turn.",
        ),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=0, help="Frames; 0: the seconds of the spec.")] = 0,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Pixels; empty: the spec's, square.")] = "",
) -> None:
    """Write a simulated set as real video files."""
    from stagedkd.spec.schema import Simulated

    made, runtime = _load(spec, overrides, cells, None)
    if not isinstance(made.data, Simulated):
        raise UsageError(f"{spec} is not about simulated clips", hint="data: {kind: figures} or shapes")
    side = made.clip.shorter_side + made.clip.shorter_side % 2
    width, height = _size(size) if size else (side, side)
    if lists and not any(lists.glob("*.txt")):
        raise UsageError(f"no lists (*.txt) in {lists}")
    if width % 2 or height % 2:
        raise UsageError(f"a video of {width}x{height}: sides must be even", hint="round them up")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", hint="name a new folder")
    from stagedkd.data.export import Look
    from stagedkd.data.export import export as write

    fps = made.data.domain.fps
    look = Look(frames or max(1, round(made.data.seconds * fps)), height, width, fps)
    with progress() as shown:
        count = write(
            made.data, out, layout, lists, look, runtime.workers or 2, lambda *at: shown.count("videos written", *at)
        )
    path = out.resolve()
    at = path.relative_to(runtime.folder("data_dir")) if path.is_relative_to(runtime.folder("data_dir")) else path
    say([f"wrote {count:,} videos of {look.frames} frames, {width}x{height}"])
    say([f"use them with: data: {{kind: {layout}, path: {at}}}"])


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text}: a size is WIDTHxHEIGHT, such as 320x240")
    return int(width), int(height)


def _load(
    path: Path, overrides: list[str] | None, cells: list[str] | None, data_dir: Path | None
) -> tuple[Spec, Runtime]:
    return load_cell(path, overrides, cells).cells[0].spec, runtime_of(path, data_dir=data_dir)
