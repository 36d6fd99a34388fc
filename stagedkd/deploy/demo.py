"""Write a static page that runs a student in the browser: the ONNX export, the runtime, and one answer to reproduce.

Shape legend: T frames, H, W pixels, 3 = RGB, N classes.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The type stubs of torch are incomplete.
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stagedkd.deploy.browser_runtime import PACKAGE, VERSION, runtime_files
from stagedkd.deploy.clips import check_clips
from stagedkd.deploy.export.graph import FramesToLogits
from stagedkd.deploy.export.onnx import Onnx
from stagedkd.deploy.export.write import TOLERANCE, Export, Wish, export_student
from stagedkd.deploy.student import Found
from stagedkd.errors import UsageError
from stagedkd.files import files_below, write_whole
from stagedkd.plan.runtime import Runtime
from stagedkd.report.card import CARD

MARK, EXAMPLE, RUNTIME = "demo.json", "example.bin", "runtime"
FORMAT = "stagedkd demo 1"
PAGE = ("index.html", "style.css", "demo.js", "frames.js", "video.js", "draw.js", "worker.js")


@dataclass(frozen=True)
class Demo:
    """A page that was written: its folder, the size of its files, the ONNX export, and the clip of the stored answer
    (`validation` or `rendered`)."""

    folder: Path
    bytes: int
    export: Export
    example: str


def write_demo(
    found: Found,
    out: Path,
    runtime: Runtime,
    note: Callable[[str], None],
    archive: Path | None = None,
    tolerance: float = TOLERANCE,
) -> Demo:
    """Write the page of a student into the folder `out`, which is replaced if it holds an earlier page.

    Args:
        note: is told what happens.
        archive: the runtime's archive; None: npm's (see `runtime_files`).
        tolerance: the largest difference of a logit from torch, for ONNX Runtime here and in the browser.
    Raises:
        UsageError: `out` holds something else, a package is missing, or the runtime cannot be had.
        HostError, DataError: npm fails. TrainingError: the network cannot be exported. Nothing is written then.
    """
    if out.exists() and not (out / MARK).is_file() and any(out.iterdir() if out.is_dir() else [out]):
        raise UsageError(f"{out} exists and is no earlier demo", hint="name another folder with --out")
    libraries = runtime_files(runtime.folder("cache"), archive, note)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        work, folder = Path(name), Path(name) / "page"
        (folder / RUNTIME).mkdir(parents=True)
        made = export_student(found, Wish(Onnx.name, batch=1, tolerance=tolerance), work / "export", runtime, note)
        for file in (Onnx.file, CARD):
            (work / "export" / file).rename(folder / file)
        for file, content in libraries.items():
            (folder / RUNTIME / file).write_bytes(content)
        for file in PAGE:
            (folder / file).write_bytes((files("stagedkd.deploy") / "page" / file).read_bytes())
        example = _write_example(found, runtime, folder)
        write_whole(folder / MARK, json.dumps(_description(made, example, tolerance), indent=1) + "\n")
        size = sum(path.stat().st_size for path in files_below(folder))
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return Demo(out, size, made, example["clip"])


def _write_example(found: Found, runtime: Runtime, folder: Path) -> dict[str, Any]:
    """Write the frames of one clip, and return their shape (T, H, W, 3) with torch's logits (N,); for a student in
    int8, with those of ONNX Runtime, since a sum that lies between two bytes may go the other way in torch."""
    clips = check_clips(found, runtime, 1, 0)
    frames_1THW3 = clips.frames(clips.checked[:1])
    if found.card.quantised:
        logits_N = Onnx().load(folder, runtime.used_threads)(frames_1THW3)[0]
    else:
        module = FramesToLogits(found.new_network().eval(), found.card).eval()
        with torch.inference_mode():
            logits_N = module(torch.from_numpy(frames_1THW3))[0].numpy()
    (folder / EXAMPLE).write_bytes(frames_1THW3.tobytes())
    shape = list(frames_1THW3.shape[1:])
    return {"file": EXAMPLE, "clip": clips.kind, "shape": shape, "logits": [float(each) for each in logits_N]}


def _description(made: Export, example: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The content of demo.json, which the page reads."""
    runtime = {"package": PACKAGE, "version": VERSION}
    compared = made.as_json()["compared"]
    described = {"format": FORMAT, "tolerance": tolerance, "runtime": runtime}
    return described | {"example": example, "onnx": compared}
