"""Commands on a student that a run has made: `stagedkd predict`, `export`, `bench`, `demo`, `publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagedkd.cli.common import AsJson, Device, Threads, console, print_lines
from stagedkd.errors import DataError, UsageError

if TYPE_CHECKING:
    from stagedkd.deploy.predict import Answer
    from stagedkd.deploy.student import Prediction, Student

StudentPath = Annotated[
    Path,
    typer.Argument(metavar="STUDENT", help="Take the network of this results folder, export, artifact or file."),
]
VideoPaths = Annotated[
    list[str] | None,
    typer.Argument(metavar="VIDEO|FOLDER|LIST", help="Predict these videos, those below folders, and those of lists."),
]
Crops = Annotated[int | None, typer.Option("--crops", help="Crops of each clip: 1 or 3.", show_default="as evaluated")]


def predict(
    student: StudentPath,
    videos: VideoPaths = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Show this many classes.")] = 5,
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, help="Clips of each video.", show_default="as evaluated")
    ] = None,
    crops: Crops = None,
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="Predict a window at every 1s, say, of long videos.")
    ] = "",
    window: Annotated[str, typer.Option("--window", metavar="TIME", help="Make windows this long.")] = "",
    camera: Annotated[int | None, typer.Option("--camera", min=0, help="Predict what this camera sees.")] = None,
    as_json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with the probabilities of all classes.")] = False,
    srt: Annotated[bool, typer.Option("--srt", help="Print subtitles of one video, with --every.")] = False,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Predict the classes of videos with a student."""
    from stagedkd.deploy.predict import answers, as_csv, as_json_text, as_subtitles, find_videos, seconds_of

    _check_forms(as_json=as_json, csv=csv, srt=srt, every=every, window=window, camera=camera, videos=videos)
    loaded = load(student, device, threads)
    length = seconds_of(window) if window else None
    if camera is not None:
        _watch(loaded, camera, seconds_of(every or "1s"), top)
        return
    found = find_videos(videos or [])
    if srt and len(found) > 1:
        raise UsageError(f"--srt is for one video, not {len(found)}", hint="call it once for each video")
    rows = answers(loaded, found, clips, _crops(crops), seconds_of(every) if every else None, length)
    if not (as_json or csv or srt):
        bad = _print_rows(rows, top)
    else:
        listed = list(rows)
        text = as_json_text(listed, top) if as_json else as_csv(listed, loaded.classes) if csv else as_subtitles(listed)
        print(text, end="")
        bad = [row for row in listed if row.prediction is None]
    if bad:
        names = "".join(f"\n  {row.problem}" for row in bad)
        message = f"{len(bad)} of {len(found)} videos cannot be read:{names}"
        raise DataError(message, hint="the others were predicted; stagedkd data verify explains faults of a data set")


def _check_forms(**given: Any) -> None:
    """Refuse options that do not go together."""
    if sum((given["as_json"], given["csv"], given["srt"])) > 1:
        raise UsageError("--json, --csv and --srt exclude each other", hint="choose one of them")
    if given["srt"] and not given["every"]:
        raise UsageError("--srt needs --every", hint="add --every 1s")
    if given["window"] and not given["every"]:
        raise UsageError("--window needs --every", hint="add --every 1s")
    if (given["camera"] is None) == (not given["videos"]):
        raise UsageError("give videos or --camera", hint="such as: stagedkd predict results/quickstart video.mp4")
    if given["camera"] is not None and (given["as_json"] or given["csv"] or given["srt"]):
        raise UsageError("--camera prints lines, no file", hint="record a video, and predict that with --every 1s")


def _crops(number: int | None) -> Any:
    if number not in (None, 1, 3):
        raise UsageError(f"--crops is {number}, but must be 1 or 3", hint="3 takes the ends and the middle")
    return number


def load(path: Path, device: str | None, threads: int | None) -> Student:
    """Load a student for a command."""
    import torch

    from stagedkd.deploy.student import load_student
    from stagedkd.plan.runtime import Runtime

    torch.set_num_threads(Runtime(threads=threads or 0).used_threads)
    return load_student(path, device or "cpu")


def _print_rows(rows: Any, top: int) -> list[Answer]:
    """Print a line for each answer as it comes. Returns those without a prediction."""
    bad: list[Answer] = []
    for row in rows:
        if row.prediction is None:
            bad.append(row)
            continue
        print_lines([f"{row.video}{_window(row.prediction)}: {_classes(row.prediction, top)}"])
    return bad


def _watch(student: Student, camera: int, every: float, top: int) -> None:
    """Print a line for every window of a camera, until Ctrl-C."""
    from stagedkd.deploy.camera import camera_frames, watch

    try:
        for prediction in watch(student, camera_frames(camera), every):
            print_lines([f"{prediction.end:7.1f} s: {_classes(prediction, top)}"])
    except KeyboardInterrupt:
        console(err=True).print("stopped")


def _window(prediction: Prediction) -> str:
    return "" if prediction.start is None else f" {prediction.start:.2f}-{prediction.end:.2f} s"


def _classes(prediction: Prediction, top: int) -> str:
    return ", ".join(f"{name} {100 * chance:.1f}%" for name, chance in prediction.top(top))
