"""A student outside the project: its card, predict, load_student, exports, bench, publish; and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import jsonschema
import numpy as np
import pytest

from stagedkd import load_student
from stagedkd.deploy.camera import watch
from stagedkd.deploy.predict import find_videos, seconds_of
from stagedkd.errors import DataError, StoreError, UsageError
from stagedkd.report.card import StudentCard, read_card
from stagedkd.stages.tables import read_table
from tests.conftest import REPO

SPEC = """\
data: {kind: folder, path: videos, folds: 4, val_folds: 1, test_folds: 0}
clip: {frames: 4, size: [16, 24], stride: 2}
labels: {clean: 1.0}
train: {batch: 6, lr: 1e-2}
teacher: {arch: resnet3d, width: 8, blocks: [1, 1], labels: all, epochs: 1}
student: {arch: resnet3d, width: 4, blocks: [1, 1], substages: [[stem, layer1], [layer2]], epochs: 2}
distill: {phases: {joint: {losses: {ce: 0.5, kd: 0.5}}}}
evaluate: {clips: 2, crops: 3}
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


def write_video(path: Path, frames: int, seed: int, step: int, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    tiles = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    picture = tiles.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, step * t, 1), format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run of small videos, upright and lying, and further ones beside."""
    folder = tmp_path_factory.mktemp("project")
    for number, (name, step) in enumerate({"left": -2, "right": 2, "still": 0}.items()):
        for i in range(8):
            size = (64, 48) if i % 2 else (48, 80)
            write_video(folder / "videos" / name / f"{i}.mp4", 12 + i, 100 * number + i, step, size)
    write_video(folder / "long.mp4", 100, 7, 2)
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "specs").mkdir()
    (folder / "specs" / "clips.yaml").write_text(SPEC, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1, data_dir: .}\n", "utf-8")
    done = calling(folder)("run", "specs/clips.yaml", "--no-dvc", "-q")
    assert done.returncode == 0, done.stderr
    return folder


def calling(folder: Path) -> Call:
    def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stagedkd.cli", *words]
        environment = {**os.environ, "PYTHONPATH": str(REPO), **variables}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return call


@pytest.fixture
def stagedkd(place: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(place)
    return calling(place)


def validation(place: Path) -> list[tuple[str, int, float]]:
    """Address, predicted class and confidence of each validation clip, from predictions.parquet."""
    key = read_card(place / "results/clips/student.json").key
    for folder in (place / "store").glob("evaluate-*"):
        manifest = json.loads((folder / "files/manifest.json").read_text("utf-8"))
        if manifest["closure"][manifest["key"]]["needs"]["network"] == key:
            table = read_table((folder / "files/predictions.parquet").read_bytes())
    (data,) = (place / "store").glob("prepare-*")
    paths = read_table((data / "files/clips.parquet").read_bytes(), "path")["path"]
    rows = zip(table["clip"], table["predicted"], table["confidence"], strict=True)
    return [(f"videos/{paths[clip]}", predicted, confidence) for clip, predicted, confidence in rows]


@pytest.mark.slow
def test_a_card_explains_its_student(place: Path, stagedkd: Call) -> None:
    text = (place / "results/clips/student.json").read_text("utf-8")
    jsonschema.validate(json.loads(text), json.loads(stagedkd("schema", "--student").stdout))
    card = StudentCard.model_validate_json(text, strict=False)
    assert card.classes == ("left", "right", "still") and card.views == (2, 3) and card.shape == (3, 4, 16, 24)
    assert card.frames.stride == 2 and card.picture.resize == 27 and card.picture.mean[0] == 0.43216
    assert card.accuracy is not None and card.accuracy.split == "val" and card.accuracy.clips == 6
    page = (place / "results/clips/README.md").read_text("utf-8")
    assert page.startswith("---\nlibrary_name: stagedkd\n") and "| student |" in page and "validation" in page


@pytest.mark.slow
def test_predictions_are_those_of_the_run_to_the_bit(place: Path, stagedkd: Call) -> None:
    student, rows = load_student("results/clips"), validation(place)
    assert len(rows) == 6
    for video, predicted, confidence in rows:
        found = student.predict(video).probabilities_N
        assert (int(found.argmax()), float(found.max())) == (predicted, confidence)
    printed = json.loads(stagedkd("predict", "results/clips", *(row[0] for row in rows), "--json").stdout)
    assert [row["classes"][0]["probability"] for row in printed] == [confidence for *_, confidence in rows]
    by_key = load_student(next((place / "store").glob(f"distill-{student.card.key[:12]}*")))
    assert (by_key.predict(rows[0][0], 2, 3).probabilities_N == student.predict(rows[0][0]).probabilities_N).all()


@pytest.mark.slow
def test_arrays_are_seen_as_videos_are(place: Path, stagedkd: Call) -> None:
    student = load_student("results/clips")
    with av.open("videos/left/1.mp4") as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    found, expected = student.predict(frames).probabilities_N, student.predict("videos/left/1.mp4").probabilities_N
    assert np.abs(found - expected).max() < 0.05  # the array was made RGB before it was scaled
    assert student.preprocess(frames, 1, 1).shape == (1, 3, 4, 16, 24)
    for wrong in (frames[0], frames.astype(np.float32), frames[..., :1]):
        with pytest.raises(DataError, match="not uint8"):
            student.predict(wrong)


@pytest.mark.slow
def test_folders_lists_and_bad_files(place: Path, stagedkd: Call) -> None:
    (place / "list.csv").write_text("path,label\nvideos/left/0.mp4,left\n# a remark\nbroken.mp4,left\n", "utf-8")
    assert find_videos(["list.csv"]) == ["videos/left/0.mp4", "broken.mp4"]
    assert len(find_videos(["videos/left", "videos/left/0.mp4"])) == 8
    done = stagedkd("predict", "results/clips", "list.csv", "videos/left", "missing.mp4", "--csv")
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1 and "Traceback" not in done.stderr and "2 of 10 videos cannot be read" in done.stderr
    assert [row["problem"] != "" for row in table] == [False, True, *[False] * 7, True]
    whole = [float(row["left"]) + float(row["right"]) + float(row["still"]) for row in table if row["left"]]
    assert np.allclose(whole, 1, atol=1e-4)
    with pytest.raises(UsageError, match="names no video"):
        find_videos(["specs"])


@pytest.mark.slow
def test_windows_of_a_long_video(place: Path, stagedkd: Call) -> None:
    """Each window is what its frames alone would give, and subtitles cover the windows."""
    student = load_student("results/clips")
    found = list(student.predict_windows("long.mp4", 0.5))
    assert [round(each.start or 0, 3) for each in found] == [0.5 * i for i in range(8)]
    assert all(round((each.end or 0) - (each.start or 0), 3) == 0.28 for each in found)  # 7 frames at 25 a second
    alone = student.predict("long.mp4#f=25,32", 1, 1)
    assert (found[2].probabilities_N == alone.probabilities_N).all()
    text = stagedkd("predict", "results/clips", "long.mp4", "--every", "500ms", "--srt").stdout
    assert text.startswith("1\n00:00:00,000 --> ") and text.rstrip().splitlines()[-1].endswith("%)")
    long = list(student.predict_windows("long.mp4", 1.0, 2.0))
    assert [each.start for each in long] == [0.0, 1.0, 2.0] and long[0].end == 2.0


@pytest.mark.slow
def test_a_camera_is_a_stream_of_windows(place: Path, stagedkd: Call) -> None:
    student = load_student("results/clips")
    dice = np.random.default_rng(0)
    frames = ((5.0 + i / 25, dice.integers(0, 255, (48, 64, 3), np.uint8)) for i in range(50))
    found = list(watch(student, frames, 0.5))
    assert [round((each.end or 0), 2) for each in found] == [0.28, 0.8, 1.32, 1.84]
    said = stagedkd("predict", "results/clips", "--camera", "97")
    assert said.returncode == 2 and "camera 97" in said.stderr and "Traceback" not in said.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("predict", "none", "long.mp4"), "none does not exist"),
        (("predict", "specs", "long.mp4"), "specs holds no student.safetensors"),
        (("predict", "results/clips"), "give videos or --camera"),
        (("predict", "results/clips", "long.mp4", "--srt"), "--srt needs --every"),
        (("predict", "results/clips", "long.mp4", "--csv", "--json"), "exclude each other"),
        (("predict", "results/clips", "long.mp4", "--every", "soon"), "'soon' is no time"),
        (("predict", "results/clips", "long.mp4", "--crops", "2"), "must be 1 or 3"),
        (("export", "results/clips", "--to", "tflite"), "--to tflite is unknown"),
        (("export", "results/clips", "--to", "pt2", "--int8"), "--to pt2 has no --int8"),
        (("export", "results/clips", "--to", "pt2", "--batch", "0"), "must be a number from 1 to 1024"),
        (("export", "results/clips", "--to", "pt2", "--out", "videos"), "is no earlier export"),
        (("bench", "results/clips", "abacus"), "has no runtime 'abacus'"),
        (("publish", "results/clips", "--out", "videos"), "is not empty"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_is_refused_in_a_sentence(stagedkd: Call, words: tuple[str, ...], said: str) -> None:
    done = stagedkd(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_student_and_its_card_belong_together(place: Path, stagedkd: Call) -> None:
    shutil.copytree("results/clips", "other", dirs_exist_ok=True)
    card = json.loads(Path("other/student.json").read_text("utf-8"))
    cases = {
        "is no student.json of this version": {**card, "format": "stagedkd student 9"},
        "is not the file that student.json beside it describes": {**card, "weights": "0" * 64},
        "does not fit resnet3d with 2 classes": {**card, "classes": ["left", "right"]},
    }
    for said, values in cases.items():
        Path("other/student.json").write_text(json.dumps(values), "utf-8")
        with pytest.raises(StoreError, match=said):
            load_student("other")
    Path("other/student.json").unlink()
    with pytest.raises(StoreError, match=r"student\.json cannot be read"):
        load_student("other")


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds_of(text) for text in ("1s", "0.5", "250ms", " 2 S ")] == [1.0, 0.5, 0.25, 2.0]


# Exports. Those that need an extra are skipped where it is not installed.


def exported(stagedkd: Call, form: str, *words: str) -> dict[str, object]:
    done = stagedkd("export", "results/clips", "--to", form, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.slow
def test_a_program_without_stagedkd_gives_the_same_numbers(place: Path, stagedkd: Call, tmp_path: Path) -> None:
    """In a process that cannot import stagedkd, from a folder of its own."""
    exported(stagedkd, "python", "--out", str(tmp_path / "out"))
    program = tmp_path / "out" / "student.py"
    assert len(program.read_text("utf-8").splitlines()) < 150
    videos = [str(place / row[0]) for row in validation(place)] + [str(place / "long.mp4")]
    code = f"""
import sys
sys.modules["stagedkd"] = None
sys.path.insert(0, {str(tmp_path / "out")!r})
import json, student
each = student.Student()
print(json.dumps([each.predict(video).tolist() for video in {videos!r}]))
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    ours = load_student("results/clips")
    for video, row in zip(videos, json.loads(done.stdout), strict=True):
        assert (np.array(row, np.float32) == ours.predict(video).probabilities_N).all(), video
    run = subprocess.run([sys.executable, "-P", str(program), videos[0]], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "%" in run.stdout, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt2", "onnx", "openvino"])
def test_float_exports_agree_with_torch_and_hold_no_path(place: Path, stagedkd: Call, form: str) -> None:
    for package in {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}.get(form, ()):
        pytest.importorskip(package)
    found = exported(stagedkd, form)
    compared = found["compared"]
    assert isinstance(compared, dict) and compared["difference"] < 1e-5 and compared["agreement"] == 1
    assert compared["clips"] == "6 validation clips" and compared["own"] == compared["float32"]
    for path in (place / "results/clips/export" / form).iterdir():
        content = path.read_bytes()
        assert str(place).encode() not in content and str(REPO).encode() not in content, path
    refused = stagedkd("export", "results/clips", "--to", form, "--tolerance", "0", "--batch", "3")
    if compared["difference"]:
        assert refused.returncode == 1 and "nothing was written" in refused.stderr
        kept = json.loads((place / "results/clips/export" / form / "export.json").read_text("utf-8"))
        assert kept["batch"] is None  # the earlier export stays


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_exports_tell_what_stayed_in_float(place: Path, stagedkd: Call, form: str) -> None:
    for package in {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "nncf")}[form]:
        pytest.importorskip(package)
    found = exported(stagedkd, form, "--int8", "--agreement", "0.5")
    operators = found["operators"]
    assert isinstance(operators, dict) and operators["int8"]["Conv"] >= 4
    home = {"HOME": str(place / "home"), "CI": ""}
    lines = stagedkd("export", "results/clips", "--to", form, "--int8", "--agreement", "0.5", **home).stdout
    assert not (place / "home" / "intel").exists()  # where OpenVINO keeps whom its statistics are of
    assert "left in float32: " in lines and "top-1: torch " in lines
    away = place / "away"
    shutil.copytree(place / "results/clips", away / "clips", dirs_exist_ok=True)
    refused = stagedkd("export", "away/clips", "--to", form, "--int8", "--store", "away/nothing")
    assert refused.returncode == 2 and "--int8 needs training clips" in refused.stderr


@pytest.mark.slow
def test_rendered_clips_stand_in_where_the_data_are_not_at_hand(place: Path, stagedkd: Call) -> None:
    done = stagedkd("export", "results/clips", "--to", "pt2", "--out", "elsewhere", "--store", "away/nothing")
    assert done.returncode == 0 and "compared on rendered clips" in done.stdout and "32 rendered clips" in done.stdout


@pytest.mark.slow
def test_bench_and_publish(place: Path, stagedkd: Call) -> None:
    exported(stagedkd, "pt2")
    done = stagedkd("bench", "results/clips", "torch", "pt2", "teacher", "--json")
    assert done.returncode == 0, done.stderr
    timings = json.loads(done.stdout)["timings"]
    assert [each["runtime"] for each in timings] == ["torch", "pt2", "teacher"]
    assert all(0 < each["median"] <= each["p95"] and each["throughput"] > 0 for each in timings)
    assert json.loads(Path("results/clips/bench.json").read_text("utf-8"))["timings"] == timings
    assert stagedkd("publish", "results/clips", "--out", "hub", "--with", "pt2").returncode == 0
    assert {"README.md", "student.json", "student.safetensors", "pt2"} == {path.name for path in Path("hub").iterdir()}
    assert load_student("hub").classes == ("left", "right", "still")
