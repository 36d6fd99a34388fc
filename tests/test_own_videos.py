"""README's commands for one's own videos, in the layouts of the field: from a fresh clone, and from an empty folder with
the built wheel. `init` tells the layout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagedkd.data.detect import detect
from stagedkd.errors import StagedkdError
from stagedkd.spec.schema import Csv, Folder, Videos
from tests.conftest import REPO
from tests.videos import write_video

CLASSES, CLIPS = ("down", "up"), 6


def put_clip(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, 10 + number % 3, noisy=True)


def class_folders(root: Path) -> Path:
    for name in CLASSES:
        for number in range(CLIPS):
            put_clip(root / name / f"{number}.avi", number)
    return root


def split_folders(root: Path) -> Path:
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        for name in CLASSES:
            for number in range(count):
                put_clip(root / split / name / f"{split}{number}.mp4", number)
    return root


def slowfast_lists(root: Path) -> Path:
    """train.csv, val.csv and test.csv without a header, `PATH LABEL`, beside the videos; test.csv is val.csv, as often."""
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(10):
        put_clip(root / "videos" / f"clip {number}.mp4", number)
        rows["train" if number < 6 else "val"].append(f"videos/clip {number}.mp4 {number % 2}\n")
    for name in ("train", "val", "test"):
        (root / f"{name}.csv").write_text("".join(rows["train" if name == "train" else "val"]), "utf-8")
    (root / "classes.txt").write_text("down\nup\n", "utf-8")
    return root


def rawframes(root: Path) -> Path:
    dice = np.random.default_rng(0)
    for name in CLASSES:
        for clip in range(CLIPS):
            folder = root / name / f"clip{clip}"
            folder.mkdir(parents=True)
            for number in range(1, 9):
                Image.fromarray(dice.integers(0, 255, (32, 40, 3), np.uint8)).save(folder / f"img_{number:05}.jpg")
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "class folders": (class_folders, "kind: folder", 12),
    "split folders": (split_folders, "kind: folder", 12),
    "SlowFast lists": (slowfast_lists, "kind: csv", 10),
    "rawframes": (rawframes, "kind: folder", 12),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the built wheel."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPO / "stagedkd", root / "source" / "stagedkd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPO / name, root / "source")
    shutil.copytree(REPO / "docs", root / "source" / "docs")
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(root)]
    made = subprocess.run(command, cwd=root / "source", capture_output=True, text=True, check=True)
    with zipfile.ZipFile(root / made.stdout.splitlines()[-1]) as archive:
        archive.extractall(root / "site")
    return root / "site"


def clone(folder: Path) -> None:
    """A copy of the files that git tracks, in a repository of their own."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True, capture_output=True)


def commands() -> list[list[str]]:
    """README's commands for one's own videos, without the activation of the environment."""
    section = (REPO / "README.md").read_text("utf-8").partition("## Your own videos")[2].partition("\n## ")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("stagedkd ")]
    assert [row[1] for row in found] == ["init", "run", "data", "data"]
    return [row[1:] for row in found]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["fresh clone", "empty folder"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_commands_of_the_readme_work_on_ones_own_videos(
    tmp_path: Path, wheel: Path, layout: str, place: str
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if place == "fresh clone":
        clone(work)
    make, kind, clips = LAYOUTS[layout]
    make(work / "my_videos")
    package = work if place == "fresh clone" else wheel
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    environment.pop("STAGEDKD_DATA", None)
    short = ["--set", "teacher.epochs=1", "--set", "student.epochs=1", "--set", "train.warmup_epochs=0"]
    said: dict[str, str] = {}
    shown = commands() if place == "fresh clone" else commands()[:2]  # the wheel is shown to have what a run needs
    for command in shown:
        more = short if command[0] == "run" else []
        found = subprocess.run(
            [sys.executable, "-m", "stagedkd", *command, *more],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, (command, found.stdout, found.stderr)
        said[" ".join(command[:2])] = found.stdout + found.stderr
    text = (work / "specs" / "my_videos.yaml").read_text("utf-8")
    assert kind in text and f"{clips} clips of 2 classes (down, up)" in text, text
    assert "recipe: kd" in text and "control-ce" in said["run specs/my_videos.yaml"]
    assert (work / "results").is_dir()
    if place != "fresh clone":
        return
    assert "contact.png" in said["data preview"]
    table = said["data index"]
    expected = {"split folders": r"all +6 +4 +2", "SlowFast lists": r"all +6 +4 +0"}.get(
        layout, r"all +[4-9] +[2-4] +\d"
    )
    assert re.search(expected, table), table


# ---------------------------------------------------------------- what init finds


def found(root: Path, name: str = "") -> tuple[Videos, list[str]]:
    return detect(root / name, lambda path: str(path.relative_to(root)))


def test_lists_of_each_split_and_their_classes_are_found(tmp_path: Path) -> None:
    slowfast_lists(tmp_path)
    data, notes = found(tmp_path)
    assert data == Csv(kind="csv", path="train.csv", val="val.csv", classes="classes.txt")
    assert [note.split(" ")[0] for note in notes] == [f"{tmp_path}/test.csv", "read", "read"]
    assert found(tmp_path, "train.csv")[0] == data
    assert found(tmp_path, "val.csv")[0] == Csv(kind="csv", path="val.csv", classes="classes.txt")


def test_lists_in_a_folder_of_their_own_find_the_videos(tmp_path: Path) -> None:
    """mmaction2: data/annotations/NAME_train_list.txt, with paths relative to data/videos."""
    for name in ("a", "b", "c", "d"):
        put_clip(tmp_path / "videos" / f"{name}.mp4", 0)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "my_train_list.txt").write_text("a.mp4 0\nb.mp4 1\n", "utf-8")
    (tmp_path / "annotations" / "my_val_list.txt").write_text("c.mp4 0\nd.mp4 1\n", "utf-8")
    data, _ = found(tmp_path)
    lists = {"path": "annotations/my_train_list.txt", "val": "annotations/my_val_list.txt"}
    assert data == Csv(kind="csv", videos="videos", **lists)


@pytest.mark.parametrize(
    ("paths", "kind"),
    [
        (["UCF-101/", "ucfTrainTestlist/"], "ucf101"),
        (["testTrainMulti_7030_splits/"], "hmdb51"),
        (["20bn-something-something-v2/", "labels/train.json"], "ssv2"),
        (["20bn-jester-v1/"], "jester"),
        (["annotations/train.csv"], "kinetics"),
        (["walk/1.mp4"], "folder"),
    ],
)
def test_official_layouts_are_told_by_their_lists(tmp_path: Path, paths: list[str], kind: str) -> None:
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (tmp_path / path).mkdir()
        else:
            (tmp_path / path).write_text("label,youtube_id,time_start,time_end,split\n", "utf-8")
    assert detect(tmp_path, str)[0].kind == kind


def test_a_table_with_other_column_names_goes_before_folders_and_a_log_is_no_list(tmp_path: Path) -> None:
    for number in range(4):
        put_clip(tmp_path / f"cam{number % 2}" / f"{number}.mp4", 0)
    (tmp_path / "train.txt").write_text("epoch 1 loss 3.2\n", "utf-8")
    data, notes = found(tmp_path)
    assert data == Folder(kind="folder", path=".")
    assert len(notes) == 1 and "train.txt is not used" in notes[0]
    (tmp_path / "labels.csv").write_text("filename,label\ncam0/0.mp4,x\ncam1/1.mp4,y\n", "utf-8")
    data, notes = found(tmp_path)
    assert data == Csv(kind="csv", path="labels.csv") and notes[0] == f"read the table {tmp_path / 'labels.csv'}"


def test_a_list_of_the_class_folders_gives_their_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_clip(tmp_path / name / "1.mp4", 0)
    (tmp_path / "classes.txt").write_text("b\na\n", "utf-8")
    assert found(tmp_path)[0] == Folder(kind="folder", path=".", classes="classes.txt")
    (tmp_path / "classes.txt").write_text("b\nc\n", "utf-8")
    assert found(tmp_path)[0] == Folder(kind="folder", path=".")


def test_a_list_of_the_class_folders_in_another_unicode_form_or_below_splits(tmp_path: Path) -> None:
    for split in ("TrainData", "TestData"):
        for name in ("cafe\u0301", "a"):
            put_clip(tmp_path / split / name / "1.mp4", 0)
    (tmp_path / "classes.txt").write_text("caf\u00e9\na\n", "utf-8")
    assert found(tmp_path) == (
        Folder(kind="folder", path=".", classes="classes.txt"),
        [f"read the classes {tmp_path / 'classes.txt'}"],
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("what\ndown\nup\n", "it names 3 classes, and the labels are 0 to 1; data.classes can name it"),
        ("down,0\nup,7\n", "the numbers of the classes are not 0, 1, 2, ... or 1, 2, 3, ..."),
        ("down\n", "it names 1 classes, and the labels are 0 to 1; data.classes can name it"),
    ],
)
def test_a_file_of_classes_that_does_not_fit_the_labels_is_not_taken_and_said(
    tmp_path: Path, text: str, said: str
) -> None:
    for name in ("a", "b"):
        put_clip(tmp_path / f"{name}.mp4", 0)
    (tmp_path / "clips.csv").write_text("path,label\na.mp4,0.0\nb.mp4,1\n", "utf-8")
    (tmp_path / "classes.txt").write_text(text, "utf-8")
    data, notes = found(tmp_path)
    assert data == Csv(kind="csv", path="clips.csv")
    (note,) = [note for note in notes if "classes.txt" in note]
    assert note.replace(f"{tmp_path}/", "").replace("classes.txt: ", "") in (
        f"note: classes.txt is not used: {said}",
        f"note: {said}",
    ) or note.endswith(said)


def test_a_file_of_classes_that_does_not_fit_the_folders_is_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_clip(tmp_path / name / "1.mp4", 0)
    (tmp_path / "classes.txt").write_text("what\na\nb\n", "utf-8")
    assert found(tmp_path) == (
        Folder(kind="folder", path="."),
        [f"note: {tmp_path / 'classes.txt'} is not used: no folder has its class 'what'"],
    )


def test_the_folder_of_a_table_goes_before_others_that_hold_more_of_its_clips(tmp_path: Path) -> None:
    for name in ("set/a.mp4", "old/a.mp4", "old/b.mp4"):
        put_clip(tmp_path / name, 0)
    table = tmp_path / "set" / "clips.csv"
    table.write_text("path,label\na.mp4,x\nb.mp4,y\n", "utf-8")
    data, notes = found(tmp_path, "set/clips.csv")
    assert data == Csv(kind="csv", path="set/clips.csv")
    said = f"note: {table} lists more clips of {tmp_path / 'old'} than of its own folder; data.videos can name it"
    assert notes == [said]
    (tmp_path / "set" / "a.mp4").unlink()
    put_clip(tmp_path / "set" / "z" / "a.mp4", 0)
    put_clip(tmp_path / "set" / "z" / "b.mp4", 0)
    data, notes = found(tmp_path, "set/clips.csv")
    assert data == Csv(kind="csv", path="set/clips.csv", videos="set/z")
    assert notes == [
        f"the paths of {table} are taken as relative to {tmp_path / 'set/z'}",
        f"note: its clips are in {tmp_path / 'old'}, too; data.videos can name it",
    ]


@pytest.mark.parametrize("name", ["x" * 300, "v/" * 3000])
def test_a_path_that_is_too_long_is_refused_in_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(StagedkdError, match="is not a folder or a file: it does not exist"):
        detect(tmp_path / name, str)


def test_lists_beside_a_folder_of_videos(tmp_path: Path) -> None:
    """mmaction2: data/ucf101/ucf101_train_split_1_videos.txt, with paths relative to data/ucf101/videos."""
    for name in "abcd":
        put_clip(tmp_path / "videos" / f"{name}.mp4", 0)
    (tmp_path / "set_train_split_1_videos.txt").write_text("a.mp4 0\nb.mp4 1\n", "utf-8")
    (tmp_path / "set_val_split_1_videos.txt").write_text("c.mp4 0\nd.mp4 1\n", "utf-8")
    lists = {"path": "set_train_split_1_videos.txt", "val": "set_val_split_1_videos.txt"}
    assert found(tmp_path)[0] == Csv(kind="csv", videos="videos", **lists)


def test_a_table_in_the_folder_is_preferred_and_two_lists_of_one_split_are_no_choice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_clip(tmp_path / name / "1.mp4", 0)
    for name in ("train_01.txt", "train_02.txt"):
        (tmp_path / name).write_text("a/1.mp4 0\nb/1.mp4 1\n", "utf-8")
    assert isinstance(found(tmp_path)[0], Folder)
    (tmp_path / "clips.tsv").write_text("path\tlabel\na/1.mp4\tx\nb/1.mp4\ty\n", "utf-8")
    assert found(tmp_path)[0] == Csv(kind="csv", path="clips.tsv")
    (tmp_path / "broken.csv").write_text("path,label\na/1.mp4\n", "utf-8")
    with pytest.raises(StagedkdError, match=r"broken\.csv:2: the row has 1 cells"):
        found(tmp_path, "broken.csv")
