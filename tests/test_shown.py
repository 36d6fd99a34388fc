"""From the results folders of specs/quickstart.yaml and specs/weizmann.yaml, trained for a few epochs, every way to use
a student gives the same logits."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml

from stagedkd import load_student
from stagedkd.deploy.clips import CheckClips, check_clips
from stagedkd.deploy.demo import write_demo
from stagedkd.deploy.export.graph import FramesToLogits
from stagedkd.deploy.export.write import Export, Wish, export_student
from stagedkd.deploy.student import Student, find_student
from stagedkd.errors import HostError
from stagedkd.plan.runtime import Runtime, load_runtime
from stagedkd.stages.tables import read_table
from tests.browser import STATES, opened, results, served
from tests.conftest import REPO

pytestmark = pytest.mark.slow
SHORT: dict[str, dict[str, Any]] = {  # what is shorter than in the spec; the networks are the spec's
    "quickstart": {
        "data": {"kind": "shapes", "classes": 8, "train": 256, "val": 64, "test": 16},
        "labels": {"clean": 1.0},
        "epochs": (3, 6),
    },
    "weizmann": {"epochs": (3, 8)},
}


@dataclass(frozen=True)
class Place:
    """A project with a finished run: its folder, its student's, and addresses of videos."""

    root: Path
    folder: Path
    runtime: Runtime
    videos: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        return self.folder.name == "quickstart"

    @property
    def student(self) -> Student:
        return load_student(self.folder)

    def clips(self, most: int = 64) -> CheckClips:
        """Validation clips."""
        found = check_clips(find_student(self.folder), self.runtime, most, 0)
        assert found.kind == "validation", found.why
        return found

    def frames(self, most: int = 12) -> Any:
        clips = self.clips(most)
        return clips.frames(clips.checked)

    def logits(self, frames: Any) -> Any:
        """Torch's."""
        found = find_student(self.folder)
        with torch.inference_mode():
            return (
                FramesToLogits(found.new_network().eval(), found.card)
                .eval()(torch.from_numpy(np.array(frames)))
                .numpy()
            )

    def export(self, form: str, *, int8: bool = False) -> Export:
        """The export, made once."""
        out = self.folder / "export" / (form + "-int8" * int8)
        if not out.is_dir():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of other libraries
                export_student(find_student(self.folder), Wish(form, int8, agreement=0.8), out, self.runtime, print)
        facts = json.loads((out / "export.json").read_text("utf-8"))
        assert facts["compared"]["clips"].endswith("validation clips")
        return facts


@pytest.fixture(scope="module", params=SHORT)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Place:
    name: str = request.param
    root = tmp_path_factory.mktemp(name)
    spec = yaml.safe_load((REPO / "specs" / f"{name}.yaml").read_text("utf-8"))
    short = SHORT[name]
    teacher, student = short["epochs"]
    spec = {key: value for key, value in spec.items() if key not in ("tune", "tuned", "control")}
    spec |= {key: short[key] for key in ("data", "labels") if key in short} | {"cascade": []}
    spec["train"] |= {"lr": 1e-2, "warmup_epochs": 1}
    spec["teacher"] |= {"epochs": teacher}
    spec["student"] |= {"epochs": student}
    spec["distill"]["phases"]["grow"] |= {"epochs": 1, "train": {"warmup_epochs": 0}}
    (root / "specs").mkdir()
    (root / "specs" / f"{name}.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    runtime = {"device": "cpu", "threads": 1, "data_dir": str(clips)}
    (root / "params.yaml").write_text(yaml.safe_dump({"runtime": runtime}), "utf-8")
    call(root, "run", f"specs/{name}.yaml", "--no-dvc", "-q")
    folder = root / "results" / name
    made = Place(root, folder, load_runtime(root), ())
    return Place(root, folder, made.runtime, videos_of(made, clips if name == "weizmann" else None))


def call(root: Path, *words: str) -> str:
    """Run the command line in a project."""
    command = [sys.executable, "-m", "stagedkd.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


def rows_of(place: Place) -> dict[int, tuple[int, float]]:
    """Class and confidence that the run predicted, by validation clip."""
    key = place.student.card.key
    for folder in (place.root / "store").glob("evaluate-*"):
        manifest = json.loads((folder / "files/manifest.json").read_text("utf-8"))
        if manifest["closure"][manifest["key"]]["needs"]["network"] == key:
            table = read_table((folder / "files/predictions.parquet").read_bytes())
            rows = zip(table["predicted"], table["confidence"], strict=True)
            return dict(zip(table["clip"], rows, strict=True))
    raise AssertionError("the store has no evaluation of the student")


def videos_of(place: Place, root: Path | None) -> tuple[str, ...]:
    """Videos of validation clips: their own, or for simulated ones videos of their frames, without loss."""
    checked = place.clips(4)
    if root is not None:
        (data,) = (place.root / "store").glob("prepare-*")
        paths = read_table((data / "files/clips.parquet").read_bytes(), "path")["path"]
        return tuple(str(root / "weizmann" / paths[clip]) for clip in checked.checked)
    files: list[str] = []
    for number, frames in enumerate(checked.frames(checked.checked)):
        files.append(str(place.root / f"{number}.mkv"))
        with av.open(files[-1], "w") as container:
            stream = container.add_stream("ffv1", rate=10)
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return tuple(files)


def test_predict_gives_the_numbers_of_load_student(place: Place) -> None:
    """And of the run, where its clips are videos: simulated clips are rendered in the size of the network, and a video
    of them is scaled as any other."""
    rows, student = rows_of(place), place.student
    printed = json.loads(call(place.root, "predict", str(place.folder), *place.videos, "--json"))
    assert [row["video"] for row in printed] == list(place.videos)
    for row, clip in zip(printed, place.clips(4).checked, strict=True):
        ((name, probability), *_) = student.predict(row["video"]).top()
        assert row["classes"][0] == {"class": name, "probability": probability}
        if not place.simulated:
            assert (student.classes.index(name), probability) == rows[clip]


def test_load_student_gives_the_numbers_of_the_run(place: Place) -> None:
    student, rows, clips = place.student, rows_of(place), place.clips(4)
    for video, clip in zip(place.videos, clips.checked, strict=True):
        views = student.preprocess(video)
        assert tuple(views.shape[1:]) == student.card.shape
        if place.simulated:
            (view,) = clips.source.views([clip], 1, 1)
            views = student.fitted(view)
        found = student.probabilities(views)
        assert (int(found.argmax()), float(found.max())) == rows[clip]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of a fresh environment with torch, numpy and PyAV of these versions, without stagedkd."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        pytest.skip("uv is not installed, and pip would take minutes: make installs it")
    folder = tmp_path_factory.mktemp("elsewhere")
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy", "av")]
    for words in (["venv", "-q", "--python", sys.executable, str(folder / "venv")], ["pip", "install", "-q"]):
        more = ["--python", str(python), *packages] if words[0] == "pip" else []
        done = subprocess.run([uv, *words, *more], capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            pytest.skip(f"uv cannot install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1][:200]}")
    yield python
    shutil.rmtree(folder)


def test_the_program_runs_where_stagedkd_is_not_installed(place: Place, elsewhere: Path, tmp_path: Path) -> None:
    place.export("python")
    program = shutil.copytree(place.folder / "export/python", tmp_path / "program") / "student.py"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(elsewhere), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    absent = run("-c", "import stagedkd")
    assert absent.returncode == 1 and "No module named 'stagedkd'" in absent.stderr
    code = f"""
import json, student
each = student.Student()
print(json.dumps([each.predict(video).tolist() for video in {list(place.videos)!r}]))
"""
    (program.parent / "ask.py").write_text(code, "utf-8")
    done = run(str(program.parent / "ask.py"))
    assert done.returncode == 0, done.stderr
    student = place.student
    for video, row in zip(place.videos, json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(row, student.predict(video).probabilities_N, rtol=0, atol=1e-6)
    printed = run(str(program), place.videos[0])
    assert printed.returncode == 0 and student.predict(place.videos[0]).top(1)[0][0] in printed.stdout


def test_pt2_in_torch_alone(place: Place) -> None:
    place.export("pt2")
    extra = {"student.json": ""}
    program = torch.export.load(place.folder / "export/pt2/student.pt2", extra_files=extra)
    assert json.loads(extra["student.json"])["classes"] == list(place.student.classes)
    frames = place.frames()
    with torch.inference_mode():
        found = program.module()(torch.from_numpy(np.array(frames))).numpy()
    np.testing.assert_allclose(found, place.logits(frames), rtol=0, atol=1e-5)


def in_onnx_runtime(file: Path, frames: Any) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["student.json"])["classes"]
    return session.run(["logits"], {"frames": frames})[0]


def in_openvino(file: Path, frames: Any) -> Any:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model({"frames": frames})["logits"]


RUNTIMES = {"onnx": (in_onnx_runtime, "student.onnx"), "openvino": (in_openvino, "student.xml")}


@pytest.mark.parametrize("form", RUNTIMES)
def test_float_exports_in_their_own_runtime(place: Place, form: str) -> None:
    run, file = RUNTIMES[form]
    pytest.importorskip(form)
    facts, frames = place.export(form), place.frames()
    found = run(place.folder / "export" / form / file, frames)
    np.testing.assert_allclose(found, place.logits(frames), rtol=0, atol=1e-4)
    assert facts["compared"]["difference"] < 1e-4 and facts["compared"]["agreement"] == 1


@pytest.mark.parametrize("form", RUNTIMES)
def test_int8_exports_in_their_own_runtime(place: Place, form: str) -> None:
    run, file = RUNTIMES[form]
    pytest.importorskip("nncf" if form == "openvino" else form)
    facts, frames = place.export(form, int8=True), place.frames(64)
    found, wanted = run(place.folder / "export" / f"{form}-int8" / file, frames), place.logits(frames)
    assert facts["operators"]["int8"]["Conv"] >= 6
    agreement = (found.argmax(1) == wanted.argmax(1)).mean()
    assert agreement >= 0.8 and abs(agreement - facts["compared"]["agreement"]) < 0.1


def test_the_demo_reproduces_torch_in_a_browser(place: Place) -> None:
    """The camera shows Chromium's own picture; what the student says of it is in test_demo.py."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and the page's runtime comes from it")
    try:
        write_demo(find_student(place.folder), place.folder / "demo", place.runtime, print)
    except HostError as error:
        pytest.skip(error.message)
    stored = json.loads((place.folder / "demo" / "demo.json").read_text("utf-8"))["example"]
    frames = np.frombuffer((place.folder / "demo" / stored["file"]).read_bytes(), np.uint8).reshape(stored["shape"])
    assert stored["clip"] == "validation" and np.abs(place.logits(frames[None])[0] - stored["logits"]).max() < 1e-5
    fake = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with served(place.folder / "demo") as address, opened(address, *fake) as page:
        assert results(page, *STATES)["check"]["difference"] < 1e-3
        page.click("#camera")
        page.wait_for_selector("#rows tr", state="attached", timeout=60_000)
        page.click("#stop")
        found = results(page, "done", "failed")
    assert found["state"] == "done", found["problem"]
    clip = np.array(found["clip"], np.uint8).reshape(1, *stored["shape"])
    assert np.abs(place.logits(clip)[0] - found["windows"][-1]["logits"]).max() < 1e-3
