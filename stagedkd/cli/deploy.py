"""Commands on a student that a run has made: `stagedkd predict`, `export`, `bench`, `publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagedkd.cli.common import AsJson, DataDir, Device, StoreDir, Threads, console, print_lines, print_notes
from stagedkd.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from stagedkd.deploy.export.write import Export
    from stagedkd.deploy.predict import Answer
    from stagedkd.deploy.student import Prediction, Student
    from stagedkd.plan.runtime import Runtime
    from stagedkd.report.bench import Bench

StudentPath = Annotated[
    Path,
    typer.Argument(metavar="STUDENT", help="Take the network of this results folder, artifact or file."),
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
    """Predict the classes of videos with a student.

    It takes videos, folders, lists or a camera, whole or in windows, and prints text, JSON, CSV or subtitles.
    """
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


def export(
    student: StudentPath,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="onnx, openvino, pt2, coreml or python.")],
    int8: Annotated[bool, typer.Option("--int8", help="Weights and activations in int8, by training clips.")] = False,
    batch: Annotated[
        str, typer.Option("--batch", metavar="N|dynamic", help="Take this many clips at once; dynamic: any number.")
    ] = "dynamic",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write here.", show_default="STUDENT/export/FORM")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Refuse float32 logits that differ by more.")
    ] = 1e-3,
    agreement: Annotated[
        float, typer.Option("--agreement", min=0, max=1, help="Refuse int8 that agrees with float32 on fewer clips.")
    ] = 0.9,
    store: StoreDir = None,
    data_dir: DataDir = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write a student for another runtime, load it there, and compare it with torch on validation clips.

    The forms are ONNX Runtime and OpenVINO (both also in int8), torch.export, Core ML, and Python without stagedkd.
    """
    import json

    from stagedkd.deploy.export.write import Wish, export_student
    from stagedkd.deploy.student import find_student

    if batch != "dynamic" and not (batch.isdecimal() and 1 <= int(batch) <= 1024):
        raise UsageError(f"--batch is '{batch}', but must be a number from 1 to 1024, or dynamic", hint="try --batch 1")
    found = find_student(student)
    home = student if student.is_dir() else student.parent
    target = out or home / "export" / (to + ("-int8" if int8 else ""))
    runtime = runtime_of_student(student, store, data_dir, threads)
    wish = Wish(to, int8, None if batch == "dynamic" else int(batch), tolerance, agreement)
    made = export_student(found, wish, target, runtime, lambda text: print_notes([text]))
    if as_json:
        print(json.dumps(made.as_json(), indent=1))
        return
    print_lines(_export_lines(made))


def bench(
    student: StudentPath,
    runtimes: Annotated[
        list[str] | None, typer.Argument(metavar="RUNTIME", help="Time torch, teacher, or exports such as onnx-int8.")
    ] = None,
    store: StoreDir = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time a student in torch and in its exports, in turns, beside its teacher: latency, throughput, memory, size."""
    import json

    from stagedkd.deploy import bench as timing
    from stagedkd.deploy.student import find_student
    from stagedkd.files import write_whole
    from stagedkd.report.bench import FILE

    found = find_student(student)
    home = found.weights.path.parent
    runtime = runtime_of_student(student, store, None, threads)
    teacher = timing.teacher_of(found, home, runtime.folder("store"))
    chosen = timing.runtimes_of(found, home, runtimes or [], teacher)
    measured = timing.bench(found, chosen, threads or 1)
    text = json.dumps(measured.as_json(), indent=1) + "\n"
    if home.name != "files":  # an artifact is not written to
        write_whole(home / FILE, text)
    if as_json:
        print(text, end="")
        return
    console().print(_bench_table(measured))
    if measured.note:
        print_notes([measured.note])
    print_lines([f"{measured.taken_on}; torch runs a single clip beside itself"])


def publish(
    student: StudentPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Make this folder.")],
    exports: Annotated[
        list[str] | None, typer.Option("--with", metavar="EXPORT", help="Add this export; may be repeated.")
    ] = None,
) -> None:
    """Make the folder of a student that the Hugging Face hub takes; no network is needed.

    It has a model card.
    """
    from stagedkd.deploy.publish import publish as make_folder
    from stagedkd.deploy.student import find_student

    found = find_student(student)
    files = make_folder(found, found.weights.path.parent, out, exports or [])
    print_lines([f"wrote {out}: {', '.join(str(path.relative_to(out)) for path in files)}"])
    print_lines(["look through README.md and add a license, then: hf upload NAME/MODEL " + str(out)])


def _bench_table(measured: Bench) -> Table:
    """A row for each runtime."""
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("runtime", box=None, header_style="bold", pad_edge=False)
    for column in ("median", "p95", "spread", "clips/s", "batch", "memory", "size"):
        table.add_column(column, justify="right")
    for each in measured.timings:
        memory = decimal(each.memory) if each.memory else "-"
        times = (f"{1000 * each.median:.2f} ms", f"{1000 * each.p95:.2f} ms", f"{each.spread:.0%}")
        table.add_row(each.runtime, *times, f"{each.throughput:.1f}", str(each.batch), memory, decimal(each.bytes))
    return table


def _root(student: Path) -> Path:
    """The project of a student: the nearest folder above it with a store or a params.yaml; else the working folder."""
    above = student.resolve().parents
    return next((each for each in above if (each / "store").is_dir() or (each / "params.yaml").is_file()), Path())


def runtime_of_student(student: Path, store: Path | None, data_dir: Path | None, threads: int | None) -> Runtime:
    """The runtime of a student's project, with the threads that torch uses."""
    import torch

    from stagedkd.plan.runtime import load_runtime

    runtime = load_runtime(_root(student), store=store, data_dir=data_dir, threads=threads)
    torch.set_num_threads(runtime.used_threads)
    return runtime


def _export_lines(made: Export) -> list[str]:
    """What an export is, in lines."""
    from rich.filesize import decimal

    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items())
    lines = [f"wrote {made.folder} ({decimal(made.bytes)}; {versions})"]
    if found := made.compared:
        text = f"on {found.clips}: largest difference of a logit from torch {found.difference:.2g}"
        lines.append(f"{text}, same class on {found.agreement:.1%}")
        if found.float32 and found.own:
            (a, b), (c, d) = found.float32.interval, found.own.interval
            text = f"top-1: torch {found.float32.top1:.1%} [{a:.1%}, {b:.1%}]"
            lines.append(f"{text}, {made.form} {found.own.top1:.1%} [{c:.1%}, {d:.1%}]")
    if made.int8:
        for kind, counts in (("int8", made.operators.int8), ("float32", made.operators.float32)):
            listed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
            lines.append(f"{'in' if kind == 'int8' else 'left in'} {kind}: {listed}")
    return lines


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
