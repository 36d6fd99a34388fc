"""The demo: what `stagedkd demo` writes and refuses, and the page in headless Chromium beside Python.

Pixels: browsers decode and convert colours otherwise than PyAV, by 1.7 levels of 255 on average (8 at most) in these
videos, so probabilities differ by up to 0.018. `CLOSE` allows more. The network alone must agree within 1e-3.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from stagedkd import load_student
from stagedkd.data.views import Video, apply_views, eval_views
from stagedkd.deploy import browser_runtime
from stagedkd.deploy.browser_runtime import runtime_files
from stagedkd.deploy.camera import watch
from stagedkd.deploy.export.graph import FramesToLogits
from stagedkd.deploy.student import Student
from stagedkd.deploy.videos import array_views, windows
from stagedkd.errors import DataError, HostError, UsageError
from stagedkd.report.card import frames_of
from stagedkd.spec.schema import Clip
from tests.browser import STATES, Page, axe_source, opened, results, served, violations
from tests.test_deploy import SPEC, calling, write_video

CLOSE = 0.03
PERIOD, RATE = 20, 20  # of the camera's video, in frames and frames a second
PATTERN = np.random.default_rng(7).integers(0, 255, (15, 20, 3), np.uint8).repeat(16, 0).repeat(16, 1)


def write_pattern(path: Path, codec: str, frames: int, step: int, **options: Any) -> None:
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for t in range(frames):
            picture = np.roll(PATTERN, step * t, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a student, its page, and videos that a browser can decode."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and the page's runtime comes from it")
    folder = tmp_path_factory.mktemp("project")
    for number, (name, step) in enumerate({"left": -2, "right": 2, "still": 0}.items()):
        for i in range(6):
            write_video(folder / "videos" / name / f"{i}.mp4", 12 + i, 100 * number + i, step)
    write_pattern(folder / "long.mp4", "libx264", 75, 6)
    write_pattern(folder / "long.webm", "libvpx-vp9", 50, 6)
    write_pattern(folder / "fake.y4m", "rawvideo", PERIOD, 16, format="yuv4mpegpipe")
    (folder / "specs").mkdir()
    (folder / "specs" / "clips.yaml").write_text(SPEC, "utf-8")
    (folder / "params.yaml").write_text("runtime: {device: cpu, threads: 1, data_dir: .}\n", "utf-8")
    call = calling(folder)
    done = call("run", "specs/clips.yaml", "--no-dvc", "-q")
    assert done.returncode == 0, done.stderr
    made = call("demo", "results/clips")
    if "npm cannot fetch" in made.stderr:
        pytest.skip(made.stderr.splitlines()[0])
    assert made.returncode == 0, made.stderr
    assert "npm fetches onnxruntime-web" in made.stdout and "then open: http://localhost:8000" in made.stdout
    return folder


@pytest.fixture(scope="module")
def student(place: Path) -> Student:
    return load_student(place / "results/clips")


@pytest.fixture
def demo(place: Path, tmp_path: Path) -> Path:
    """A copy of the page, to be changed."""
    shutil.copytree(place / "results/clips/demo", tmp_path / "page")
    return tmp_path / "page"


@pytest.fixture
def address(demo: Path) -> Iterator[str]:
    with served(demo) as address:
        yield address


@pytest.fixture
def page(place: Path, address: str) -> Iterator[Page]:
    """The page in a browser whose camera shows fake.y4m."""
    fake = f"--use-file-for-fake-video-capture={place / 'fake.y4m'}"
    with opened(address, "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", fake) as tab:
        yield tab


def show(page: Page, video: Path) -> dict[str, Any]:
    """Choose a file, and wait for the end."""
    results(page, "ready", "done", "failed")
    page.set_input_files("#file", video)
    return results(page, "done", "failed")


def require_torch_agrees(student: Student, found: dict[str, Any]) -> None:
    """The page's logits of its last clip are those of torch for the same bytes."""
    frames = np.array(found["clip"], np.uint8).reshape(1, 4, 16, 24, 3)
    with torch.inference_mode():
        logits = FramesToLogits(student.network, student.card)(torch.from_numpy(frames))[0].numpy()
    assert np.abs(logits - found["windows"][-1]["logits"]).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long.mp4", "long.webm"])
def test_a_file_gets_the_answers_of_predict(place: Path, student: Student, page: Page, name: str) -> None:
    assert results(page, *STATES)["check"]["difference"] < 1e-3
    page.fill("#every", "0.5")
    found = show(page, place / name)
    assert found["state"] == "done" and found["backend"] == "wasm" and not found["notes"], found["problem"]
    expected = list(student.predict_windows(place / name, 0.5))
    assert len(found["windows"]) == len(expected) > 4
    for ours, window in zip(found["windows"], expected, strict=True):
        assert [round(ours["start"], 3), round(ours["end"], 3)] == [window.start, round(window.end or 0, 3)]
        assert np.abs(window.probabilities_N - ours["probabilities"]).max() < CLOSE
    require_torch_agrees(student, found)
    *_, last = windows(str(place / name), student.card.clip, 0.5, None)
    pixels = last.views_V3THW[0].permute(1, 2, 3, 0).numpy().ravel() * 255
    assert np.abs(pixels - found["clip"]).mean() < 4  # levels; other frames differ by more than 30
    assert len(page.query_selector_all("#rows tr")) == len(expected) and page.inner_text("#bars").count("%") == 3


@pytest.mark.slow
def test_the_camera_gets_the_answers_of_predict(place: Path, student: Student, page: Page) -> None:
    """The video of the camera goes round, so a clip begins at any of its frames. A busy machine loses frames of the
    camera, and such a clip is none of Python's; the first that lost none is compared."""
    with av.open(str(place / "fake.y4m")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clips, answers = [], []
    for first in range(PERIOD):
        looped = [(i / RATE, frames[(first + i) % PERIOD]) for i in range(8)]
        answers.append(next(watch(student, looped, 1.0)).probabilities_N)
        pictures = np.stack([frame for _, frame in looped[:7]])
        clips.append(student_pixels(student, pictures))
    results(page, "ready")
    page.fill("#every", "0.3")
    page.click("#camera")
    until, seen = time.monotonic() + 60, 0
    while True:
        assert time.monotonic() < until, f"none of {seen} clips is one of the video's"
        found = results(page, "running", "failed")
        assert found["state"] == "running", found["problem"]
        if len(found["windows"]) == seen:
            time.sleep(0.05)
            continue
        seen = len(found["windows"])
        require_torch_agrees(student, found)
        differences = [np.abs(clip - found["clip"]).mean() for clip in clips]
        phase = int(np.argmin(differences))
        if differences[phase] < 5:  # levels of 255; clips of other phases differ by more than 30
            assert np.abs(answers[phase] - found["windows"][-1]["probabilities"]).max() < CLOSE
            break
    page.click("#stop")
    assert results(page, "done")["problem"] == ""


@pytest.mark.slow
def test_frames_at_uneven_distances_are_told(place: Path, page: Page) -> None:
    path = place / "uneven.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for t in range(40):
            frame = av.VideoFrame.from_ndarray(np.roll(PATTERN, 6 * t, 1), format="rgb24")
            frame.pts, frame.time_base = 40 * t + 90 * (t // 10 + (t > 0)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = show(page, path)
    assert found["state"] == "done" and "distance of the frames varies" in found["notes"][0], found
    assert "distance of the frames varies" in page.inner_text("#notes")


def student_pixels(student: Student, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The bytes of the middle clip of decoded frames, as `camera.watch` makes them."""
    return array_views(frames, RATE, student.card.clip, 1, 1)[0].permute(1, 2, 3, 0).numpy().ravel() * 255


@pytest.mark.slow
def test_a_changed_answer_shows_no_class(place: Path, demo: Path, page: Page) -> None:
    stored = json.loads((demo / "demo.json").read_text("utf-8"))
    stored["example"]["logits"][0] += 0.002
    (demo / "demo.json").write_text(json.dumps(stored), "utf-8")
    page.reload()
    found = results(page, *STATES)
    assert found["state"] == "refused" and 0.001 < found["check"]["difference"] < 0.003
    assert "does not reproduce the stored answer" in page.inner_text("#check")
    assert page.is_disabled("#choose") and page.is_disabled("#camera") and not page.inner_text("#bars")
    page.set_input_files("#file", place / "long.mp4")
    assert page.evaluate("stagedkdResults.windows.length") == 0


@pytest.mark.slow
def test_names_are_text_and_bad_files_are_named(place: Path, demo: Path, page: Page) -> None:
    card = json.loads((demo / "student.json").read_text("utf-8"))
    card["classes"] = [f"<img src=x onerror='window.hacked = {i}'>" for i in range(3)]
    card["name"] = "<b>bold</b>"
    (demo / "student.json").write_text(json.dumps(card), "utf-8")
    page.reload()
    (place / "broken.mp4").write_bytes(b"no video at all")
    found = show(page, place / "broken.mp4")
    assert found["state"] == "failed" and "cannot decode broken.mp4" in page.inner_text("#problem")
    found = show(page, place / "long.webm")
    assert found["state"] == "done" and page.is_hidden("#problem"), found["problem"]
    assert page.inner_text("h1") == "<b>bold</b>" and "<img src=x" in page.inner_text("#bars")
    assert page.evaluate("window.hacked === undefined && document.querySelectorAll('img').length === 0")


CHOOSE = """async ([frames, times, every]) => {
  const rules = await import("/frames.js");
  return {clip: rules.clipFrames(frames, times), windows: rules.windowsOf(frames, times, every)};
}"""
CROP = """async ([data, width, height, size]) => {
  const rules = await import("/frames.js");
  return Array.from(rules.croppedPicture({data: new Uint8Array(data), width, height}, size));
}"""


@pytest.mark.slow
def test_the_rules_of_the_page_are_those_of_python(page: Page) -> None:
    """Frames of clips of all kinds in videos of all lengths, and crops of pictures of all shapes."""
    dice = np.random.default_rng(0)
    for number in range(60):
        rate = float(dice.choice([5.0, 12.5])) if number % 2 else None
        fields = {"sampler": ["dense", "segments"][number // 2 % 2], "short": ["loop", "pad"][number // 4 % 2]}
        clip = Clip.model_validate(
            {**fields, "sampling": "time" if rate else "count", "rate": rate, "frames": int(dice.integers(1, 9))}
            | {"stride": int(dice.integers(1, 5)), "size": 16}
        )
        times = (np.arange(int(dice.integers(1, 60))) / float(dice.choice([10, 25, 29.97]))).tolist()
        card = frames_of(clip, None).model_dump(mode="json")
        found = page.evaluate(CHOOSE, [card, times, 0.7])
        (view,) = eval_views(clip, 1, 1, Video(len(times), 16, 16, times))
        assert found["clip"] == view.frames.tolist(), (clip, times)
        assert len(found["windows"]) >= 1
    for height, width, size in ((27, 36, (16, 24)), (48, 27, (24, 24)), (31, 31, (16, 24)), (16, 24, (16, 24))):
        picture = dice.integers(0, 255, (height, width, 3), np.uint8)
        found = page.evaluate(CROP, [picture.ravel().tolist(), width, height, size])
        clip = Clip(size=size)
        views = eval_views(clip, 1, 1, Video(1, height, width, [0.0]))
        expected = apply_views([torch.from_numpy(picture[None]).permute(0, 3, 1, 2)], views[:1], clip.size)
        python = (expected * 255)[0, :, 0].permute(1, 2, 0).numpy().ravel()
        assert np.abs(python - found).max() <= 1.001, (height, width, size)


# What the command refuses. These need no browser.


@pytest.mark.slow
def test_axe_finds_nothing_wrong_with_it(page: Page, tmp_path: Path) -> None:
    results(page, *STATES)
    axe = axe_source(tmp_path)
    for scheme, width in (("light", 1920), ("dark", 1400), ("light", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page, axe) == [], (scheme, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_it_is_written_whole_or_not_at_all(place: Path, tmp_path: Path) -> None:
    call = calling(place)
    nowhere = {"PATH": str(tmp_path)}
    before = sorted((place / "results/clips/demo").rglob("*"))
    again = call("demo", "results/clips", **nowhere)  # the archive is in the cache
    assert again.returncode == 0 and "npm" not in again.stdout, again.stderr
    assert sorted((place / "results/clips/demo").rglob("*")) == before
    kept = place / "cache/npm/onnxruntime-web-1.30.0.tgz"
    given = call("demo", "results/clips", "--runtime", str(kept), "--out", str(tmp_path / "given"), **nowhere)
    assert given.returncode == 0 and (tmp_path / "given/index.html").is_file(), given.stderr
    (tmp_path / "bad.tgz").write_bytes(b"no archive")
    cases = {
        "is not onnxruntime-web 1.30.0": ("--runtime", str(tmp_path / "bad.tgz")),
        "cannot be read": ("--runtime", str(tmp_path / "none.tgz")),
        "is no earlier demo": ("--out", "videos"),
        "npm is not installed": ("--store", "store"),
    }
    hidden = kept.rename(kept.with_suffix(".hidden"))
    for said, words in cases.items():
        out = () if "--out" in words else ("--out", str(tmp_path / "out"))
        done = call("demo", "results/clips", *words, *out, **nowhere)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 2 and "help: " in done.stderr
    hidden.rename(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tgz", "given"]


def packed(**members: bytes) -> bytes:
    """An archive of these members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set what npm does, as lines for sh whose first argument but three is the folder to pack to."""

    def write(lines: str) -> None:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}\n", "utf-8")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    return write


def test_only_the_pinned_archive_is_taken(
    tmp_path: Path, npm: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, notes = tmp_path / "cache", list[str]()
    npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(HostError, match=r"npm cannot fetch onnxruntime-web 1\.30\.0: ENOTFOUND"):
        runtime_files(cache, None, notes.append)
    npm('echo other > "$4/onnxruntime-web-1.30.0.tgz"')
    with pytest.raises(DataError, match="its SHA-512 is another"):
        runtime_files(cache, None, notes.append)
    assert not cache.exists()
    content = packed(**{name: name.encode() for name in browser_runtime.MEMBERS}, **{"../../escaped": b"x"})
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode("ascii")
    monkeypatch.setattr(browser_runtime, "INTEGRITY", digest)
    (tmp_path / "good.tgz").write_bytes(content)
    npm(f'cp "{tmp_path}/good.tgz" "$4/onnxruntime-web-1.30.0.tgz"')
    expected = {name: member.encode() for member, name in browser_runtime.MEMBERS.items()}
    assert runtime_files(cache, None, notes.append) == expected
    npm("exit 3")
    assert runtime_files(cache, None, notes.append) == expected  # from the cache
    (cache / "npm/onnxruntime-web-1.30.0.tgz").write_bytes(content[:-1])
    with pytest.raises(HostError, match="exit code 3"):
        runtime_files(cache, None, notes.append)
    assert "is damaged" in notes[-2] and runtime_files(cache, tmp_path / "good.tgz", notes.append) == expected
    with pytest.raises(UsageError, match="cannot be read"):
        runtime_files(cache, tmp_path / "none.tgz", notes.append)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """Its files name no address, set no HTML, and are all in a wheel."""
    from stagedkd.deploy.demo import PAGE

    folder = Path(browser_runtime.__file__).parent / "page"
    assert sorted(PAGE) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        assert not any(
            word in text for word in ("//cdn", "http:", "https:", "innerHTML", "insertAdjacentHTML", "eval(")
        )
        assert not [line for line in text.splitlines() if len(line) > 120], path.name
    assert "default-src 'none'" in (folder / "index.html").read_text("utf-8")
    if node := shutil.which("node"):
        for path in folder.glob("*.js"):
            command = [node, "--input-type=module", "--check"]
            done = subprocess.run(command, input=path.read_text("utf-8"), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
