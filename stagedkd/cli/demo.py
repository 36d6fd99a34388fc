"""The command `stagedkd demo`: a page that runs a student in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stagedkd.cli.common import DataDir, StoreDir, Threads, print_lines, print_notes
from stagedkd.cli.deploy import StudentPath, runtime_of_student


def demo(
    student: StudentPath,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write here.", show_default="STUDENT/demo")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            "--runtime", metavar="FILE.tgz", help="Take ONNX Runtime from this archive.", show_default="npm fetches it"
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Refuse logits that differ more, here and in the browser.")
    ] = 1e-3,
    store: StoreDir = None,
    data_dir: DataDir = None,
    threads: Threads = None,
) -> None:
    """Write a page that runs a student in the browser, on the camera or a video file, without a network."""
    from rich.filesize import decimal

    from stagedkd.deploy.demo import write_demo
    from stagedkd.deploy.student import find_student

    found = find_student(student)
    home = student if student.is_dir() else student.parent
    place = runtime_of_student(student, store, data_dir, threads)
    target = out or home / "demo"
    made = write_demo(found, target, place, lambda text: print_notes([text]), runtime, tolerance)
    print_lines([f"wrote {made.folder} ({decimal(made.bytes)}); the stored answer is of a {made.example} clip"])
    if compared := made.export.compared:
        difference = f"largest difference of a logit from torch {compared.difference:.2g}"
        print_lines([f"student.onnx on {compared.clips}: {difference}"])
    serve = f"python -m http.server 8000 --bind 127.0.0.1 --directory {made.folder}"
    print_lines([f"serve it: {serve}", "then open: http://localhost:8000"])
