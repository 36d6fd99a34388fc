"""What people bring: their folders, tables and class names are read right, or refused in words."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stagedkd.data.address import Address, Part, is_plain
from stagedkd.data.fingerprint import HashMemo, fingerprint
from stagedkd.data.index import Entry, Listing, split_entries
from stagedkd.data.layouts import list_clips
from stagedkd.data.layouts.walk import VIDEO_SUFFIXES, walk
from stagedkd.errors import DataError, StagedkdError, UsageError
from stagedkd.spec.schema import Videos

VIDEOS: TypeAdapter[Videos] = TypeAdapter(Videos)


def listed(root: Path, **data: Any) -> Listing:
    return list_clips(VIDEOS.validate_python(data), root)


def refused(root: Path, **data: Any) -> str:
    """The message and the hint of the refusal, without the root."""
    with pytest.raises(StagedkdError) as caught:
        listed(root, **data)
    return f"{caught.value.message} | {caught.value.hint}".replace(f"{root}/", "")


def lay(root: Path, *paths: str) -> None:
    """Files that only their names tell apart."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode("utf-8", "surrogateescape"))


def table(root: Path, text: str, name: str = "t.csv") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, "utf-8")


def pictures(folder: str, count: int = 3, name: str = "img_{:05}.jpg", first: int = 1) -> list[str]:
    return [f"{folder}/{name.format(i)}" for i in range(first, first + count)]


def splits(listing: Listing) -> dict[str, int]:
    return dict(Counter(e.split for e in listing.entries))


def labels(listing: Listing) -> dict[str, str]:
    return {e.path: e.label for e in listing.entries}


# ---------------------------------------------------------------- the inputs of `people/`


@pytest.fixture
def people(clips: Path) -> Path:
    return clips / "people"


@pytest.mark.parametrize(
    ("data", "clips_and_classes", "left_out", "note"),
    [
        ({"kind": "folder", "path": "01_split_folders"}, (12, "left right"), {}, "the splits are those of the folders"),
        ({"kind": "folder", "path": "05_appledouble"}, (10, "left right"), {"hidden": 10}, ""),
        ({"kind": "folder", "path": "06_suffixes"}, (20, "extra left right up"), {}, ""),
        ({"kind": "folder", "path": "07_rawframes"}, (8, "left right"), {}, ""),
        ({"kind": "csv", "path": "10_tables/multi_label.csv"}, (18, "sit sit|talk talk"), None, "'sit|talk' seems to"),
        ({"kind": "csv", "path": "10_tables/slowfast_style.csv"}, (8, "0 1"), None, "8 clips lie outside of the data"),
        ({"kind": "csv", "path": "10_tables/pandas_index.csv"}, (8, "run walk"), None, "column 1, which has no name"),
        ({"kind": "csv", "path": "10_tables/absolute_paths.csv"}, (8, "run walk"), None, "8 clips lie outside of the"),
        ({"kind": "csv", "path": "11_numeric_ids/ids.csv"}, (48, "0 1 2 3 4 5 6 7 8 9 10 11"), None, ""),
        (
            {"kind": "kinetics", "path": "14_kinetics_suffixes", "lists": "csv", "folds": 3},
            (16, "left hand,right hand"),
            {"a list of clips or classes": 2},
            "4 clips have another suffix on the disk than in the list",
        ),
    ],
    ids=lambda value: str(value.get("path", "")) if isinstance(value, dict) else None,
)
def test_what_people_bring_is_read(
    people: Path, data: dict[str, Any], clips_and_classes: tuple[int, str], left_out: dict[str, int] | None, note: str
) -> None:
    listing = listed(people, **data)
    number, classes = clips_and_classes
    assert len(listing.entries) == number
    assert list(listing.classes) == (classes.split(",") if "," in classes else classes.split())
    if left_out is not None:
        assert {reason: len(paths) for reason, paths in listing.left_out.items()} == left_out
    assert note in " ".join(listing.notes) and bool(note) == bool(listing.notes)
    assert {e.split for e in split_entries(listing.entries, VIDEOS.validate_python(data))} >= {"train", "val"}


def test_an_unquoted_comma_is_refused_with_its_line(people: Path) -> None:
    said = refused(people.resolve(), kind="csv", path="10_tables/unquoted_comma.csv")
    assert said.startswith("10_tables/unquoted_comma.csv:8: the row has 3 cells, more than the header (2)")
    assert 'put a cell that holds a comma into quotes: "..."' in said


# ---------------------------------------------------------------- split folders


@pytest.mark.parametrize(
    "names",
    [
        *("train val test", "train valid test", "Training Validation Testing", "train dev", "train eval test"),
        *("videos_train videos_val", "rawframes_train rawframes_val", "train_256 val_256", "train_set validate_set"),
    ],
)
def test_split_folders_are_splits(tmp_path: Path, names: str) -> None:
    lay(tmp_path, *(f"{name}/{c}/{i}.mp4" for name in names.split() for c in ("walk", "run") for i in range(2)))
    listing = listed(tmp_path, kind="folder")
    assert listing.classes == ("run", "walk")
    assert splits(listing) == dict.fromkeys(["train", "val", "test"][: len(names.split())], 4)
    assert "that no person or scene is in two is up to you" in listing.notes[0]


@pytest.mark.parametrize(
    ("more", "left_out", "note"),
    [
        (["train/stray.mp4"], {"in no class folder": 1}, ""),
        (
            ["test/0.mp4", "test/1.mp4"],
            {"in no class folder": 2},
            "test/ has no class folders: its clips have no label",
        ),
        (["annotations/train.csv"], {"not a video (.csv)": 1}, ""),
        (["val/.gitkeep"], {"hidden": 1}, ""),
    ],
)
def test_odd_files_do_not_make_classes_of_splits(
    tmp_path: Path, more: list[str], left_out: dict[str, int], note: str
) -> None:
    val = [] if "val/.gitkeep" in more else ["val"]
    lay(tmp_path, *(f"{s}/{c}/{i}.mp4" for s in ["train", *val] for c in ("walk", "run") for i in range(5)), *more)
    for folders in (None, "splits"):
        data = VIDEOS.validate_python({"kind": "folder", "folders": folders})
        listing = list_clips(data, tmp_path)
        assert listing.classes == ("run", "walk")
        assert {reason: len(paths) for reason, paths in listing.left_out.items()} == left_out
        assert note in " ".join(listing.notes)
        assert {e.split for e in split_entries(listing.entries, data)} >= {"train", "val"}


def test_without_a_validation_folder_clips_are_drawn_from_training_alone(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{s}/{c}/{i}.mp4" for s in ("train", "test") for c in ("walk", "run") for i in range(10)))
    data = VIDEOS.validate_python({"kind": "folder"})
    placed = split_entries(list_clips(data, tmp_path).entries, data)
    assert Counter(e.split for e in placed) == {"train": 16, "val": 4, "test": 20}
    assert {e.path.partition("/")[0] for e in placed if e.split in ("train", "val")} == {"train"}


def test_class_folders_named_like_splits_stay_classes(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{c}/{i}.mp4" for c in ("train", "test", "bus") for i in range(3)))
    assert listed(tmp_path, kind="folder").classes == ("bus", "test", "train")
    lay(tmp_path / "frames", *(p for c in ("train", "test") for i in range(3) for p in pictures(f"{c}/clip{i}")))
    assert listed(tmp_path / "frames", kind="folder", folders="classes").classes == ("test", "train")
    said = refused(tmp_path / "frames", kind="folder")
    assert "test, train are named as splits and hold no class folders" in said and "{folders: classes}" in said
    lay(tmp_path / "two", *(f"{c}/a/{i}.mp4" for c in ("train", "test") for i in range(3)))
    assert listed(tmp_path / "two", kind="folder", folders="classes").classes == ("test", "train")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["train/a/1.mp4", "val/a/1.mp4", "extra/1.mp4"], "has split folders (train/, val/) and extra/, which also"),
        (["train/a/1.mp4", "val/a/1.mp4", "valid/a/2.mp4"], "val and valid are both the val split"),
    ],
)
def test_a_mixture_of_splits_and_classes_is_refused(tmp_path: Path, paths: list[str], words: str) -> None:
    lay(tmp_path, *paths)
    assert words in refused(tmp_path, kind="folder")


# ---------------------------------------------------------------- nothing unseen


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a/1.mp4", "b/1.xyz", "b/2.xyz"], "the class b has no clip:\n    2 not a video (.xyz), such as b/1.xyz"),
        (["a/1.mp4", "b/1.mp4.part"], "the class b has no clip:\n    1 an unfinished download, such as b/1.mp4.part"),
        (["a/1.mp4", "b/001.jpg", "b/002.jpg"], "the class b has no clip:\n    2 pictures in no folder of a clip"),
        (["train/a/1.mp4", "val/a/1.mp4", "train/b/1.npz", "val/b/2.mp4"], "the class train/b has no clip"),
        (["1.mp4", "2.mp4"], "no videos below"),
        (["a/b.txt"], "no videos below"),
        (["a/1.mp4", "b/x#t=1,2.mp4"[:-4] + "#f=1,2"], ""),
        (["a/1.mp4", "b/x{}.mp4"], "its name has a meaning of its own"),
    ],
)
def test_a_class_never_vanishes_silently(tmp_path: Path, paths: list[str], words: str) -> None:
    lay(tmp_path, *paths)
    assert words in refused(tmp_path, kind="folder")


def test_what_is_no_class_is_said(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "b/1.MOV", "annotations/train.csv", "readme.md", ".git/x.mp4", "loose.mp4", "a/cover.png")
    lay(tmp_path, "__MACOSX/a/1.mp4", "a/Thumbs.db", "b/._1.MOV", "@eaDir/1.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.mp4")
    listing = listed(tmp_path, kind="folder")
    assert labels(listing) == {"a/1.mp4": "a", "b/1.MOV": "b"}
    assert {reason: len(paths) for reason, paths in listing.left_out.items()} == {
        "hidden": 5,
        "a link in a circle": 1,
        "a link to nothing": 1,
        "a picture beside videos": 1,
        "in no class folder": 1,
        "neither a file nor a folder": 1,
        "not a video (.csv)": 1,
        "not a video (.md)": 1,
    }
    assert listing.notes == ("annotations/ is no class: it holds only .csv", "empty/ is empty: it is no class")


def test_a_name_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", os.fsdecode(b"b/caf\xe9.mp4"))
    assert r"the name b/caf\xe9.mp4 cannot be written" in refused(tmp_path, kind="folder")
    lay(tmp_path / "two", "a/1.mp4", os.fsdecode(b"\xff\xfe/2.mp4"))
    assert r"the name \xff\xfe/2.mp4 cannot be written" in refused(tmp_path / "two", kind="folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "b/2.mp4")
    (tmp_path / "b").chmod(0)
    try:
        assert "the folder b cannot be read: Permission denied" in refused(tmp_path, kind="folder")
    finally:
        (tmp_path / "b").chmod(0o700)


def test_an_unreadable_folder_is_an_error_for_the_superuser_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, "a/1.mp4", "b/2.mp4")
    iterdir = Path.iterdir

    def guarded(path: Path) -> Any:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", guarded)
    assert "the folder b cannot be read: Permission denied" in refused(tmp_path, kind="folder")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0{}#"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 60
)
SUFFIXES = st.sampled_from(["", ".mp4", ".MTS", ".gif", ".txt", ".jpg", ".npz", ".part", ".avi"])


def count_of_files(root: Path) -> int:
    """Every name below a folder that is no folder."""
    return sum(
        len(files) + sum(1 for d in folders if (Path(at) / d).is_symlink()) for at, folders, files in os.walk(root)
    )


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.lists(NAMES, max_size=3), NAMES, SUFFIXES, st.sampled_from("fffffnlph")), max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_file_is_a_clip_or_counted(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[list[str], str, str, str]], dice: random.Random
) -> None:
    """Names, suffixes, nesting, links, pipes; n: a numbered run of pictures; h: hidden."""
    root = tmp_path_factory.mktemp("any")
    lay(root, "sure/clip.mp4")
    for folders, name, suffix, kind in files:
        path = root.joinpath(*folders, ("." if kind == "h" else "") + name + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() or path.is_symlink():
                continue
            if kind == "l":
                path.symlink_to(root / dice.choice(["nowhere", "sure/clip.mp4"]))
            elif kind == "p":
                os.mkfifo(path)
            elif kind == "n":
                path.mkdir()
                for i in range(dice.randint(1, 4)):
                    (path / f"{i}.jpg").write_bytes(b"x")
            else:
                path.write_bytes(b"x")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    files_of_runs = {name for run in walk(root).pictures for name in run.names}
    try:
        listing = listed(root, kind="folder")
    except StagedkdError as error:
        assert "has no clip" in error.message or "holds several sequences" in error.message, error.message
        return
    left_out = {path for paths in listing.left_out.values() for path in paths}
    assert sum(map(len, listing.left_out.values())) == len(left_out)
    videos = [e for e in listing.entries if "{" not in e.path]
    in_clips = len(videos) + len(files_of_runs - left_out)
    assert in_clips + len(left_out) == count_of_files(root)


def test_two_files_of_one_name_are_one_group(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "a/1.webm", "a/2.mp4", "b/3.mp4", *pictures("b/3", 3), "c/3.mp4")
    listing = listed(tmp_path, kind="folder")
    groups = {e.path: e.group for e in listing.entries}
    assert (
        groups["a/1.mp4"] == groups["a/1.webm"] == "a/1" and groups["b/3.mp4"] == groups["b/3/img_{:05}.jpg"] == "b/3"
    )
    assert groups["a/2.mp4"] == "a/2.mp4" and groups["c/3.mp4"] == "c/3.mp4"
    assert listing.notes == (
        "2 clips are there twice under one name, such as a/1.mp4, a/1.webm: each pair is one group",
    )
    table(tmp_path, "path,label,group\na/1.mp4,x,p\na/1.webm,x,q\n")
    assert {e.group for e in listed(tmp_path, kind="csv", path="t.csv").entries} == {"p", "q"}


def test_a_class_that_is_still_packed_is_an_error(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "b/b.zip")
    assert "the class b has no clip:\n    1 not a video (.zip)" in refused(tmp_path, kind="folder")


def test_a_table_that_cannot_be_opened_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path, "path,label\na.mp4,x\n")

    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", closed)
    assert "t.csv cannot be read: Permission denied" in refused(tmp_path, kind="csv", path="t.csv")
    monkeypatch.undo()
    table(tmp_path, f"v/a.mp4 {'word ' * 200}x\nv/b.mp4 y\n")
    assert "t.csv:1: 'v/a.mp4 word" in refused(tmp_path, kind="csv", path="t.csv")


# ---------------------------------------------------------------- folders of pictures


@pytest.mark.parametrize(
    ("name", "first", "address"),
    [
        ("img_{:05}.jpg", 1, "img_{:05}.jpg"),
        ("{:05}.jpg", 1, "{:05}.jpg"),
        ("frame{}.png", 0, "frame{}.png"),
        ("v_a_g01_c02_{:04}.JPEG", 1, "v_a_g01_c02_{:04}.JPEG"),
        ("{}_left.webp", 9, "{}_left.webp"),
    ],
)
def test_folders_of_pictures_are_clips(tmp_path: Path, name: str, first: int, address: str) -> None:
    lay(tmp_path, *pictures("a/one", 12, name, first), *pictures("b/deep/two", 2, name, first))
    listing = listed(tmp_path, kind="folder")
    assert labels(listing) == {f"a/one/{address}": "a", f"b/deep/two/{address.replace('{}', '{}')}": "b"}
    names = Address.read(tmp_path, f"a/one/{address}").pictures
    assert names is not None and sum(1 for p in (tmp_path / "a/one").iterdir() if names.fullmatch(p.name)) == 12


def test_optical_flow_beside_pictures_is_left_out(tmp_path: Path) -> None:
    for kind in ("img_{:05}.jpg", "flow_x_{:05}.jpg", "flow_y_{:05}.jpg"):
        lay(tmp_path, *pictures("a/one", 3, kind), *pictures("b/two", 3, kind))
    lay(tmp_path, "a/one/cover.jpg")
    listing = listed(tmp_path, kind="folder")
    assert set(labels(listing)) == {"a/one/img_{:05}.jpg", "b/two/img_{:05}.jpg"}
    counts = {reason: len(paths) for reason, paths in listing.left_out.items()}
    assert counts == {"optical flow": 12, "a picture of no numbered sequence": 1}


@pytest.mark.parametrize("flow", ["flow_x", "flow", "u", "tvl1_y"])
def test_folders_of_optical_flow_are_left_out(tmp_path: Path, flow: str) -> None:
    lay(tmp_path, *pictures("a/one", 3), *pictures(f"a/one/{flow}", 3, "{:05}.jpg"))
    lay(tmp_path, *pictures("b/two/rgb", 3), *pictures(f"b/two/{flow}", 3))
    more = 6 if flow == "u" else 0
    lay(tmp_path, *(p for clip in ("a/one", "b/two") if more for p in pictures(f"{clip}/v", 3)))
    listing = listed(tmp_path, kind="folder")
    assert set(labels(listing)) == {"a/one/img_{:05}.jpg", "b/two/rgb/img_{:05}.jpg"}
    assert {reason: len(paths) for reason, paths in listing.left_out.items()} == {"optical flow": 6 + more}


def test_pictures_that_are_only_named_like_flow_are_read(tmp_path: Path) -> None:
    lay(tmp_path, *pictures("a/one", 3, "v_{:04}.jpg"), *pictures("b/two", 3, "u{}.jpg"), *pictures("b/x", 3))
    assert len(listed(tmp_path, kind="folder").entries) == 3


def test_two_sequences_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    for kind in ("rgb_{:05}.jpg", "depth_{:05}.png"):
        lay(tmp_path, *pictures("a/one", 3, kind), *pictures("b/two", 3, kind))
    said = refused(tmp_path, kind="folder")
    assert "a/one holds several sequences of pictures: depth_{:05}.png, rgb_{:05}.jpg" in said
    assert "data: {pictures: 'depth_{:05}.png'}" in said
    listing = listed(tmp_path, kind="folder", pictures="rgb_{:04}.jpg")
    assert set(labels(listing)) == {"a/one/rgb_{:05}.jpg", "b/two/rgb_{:05}.jpg"}
    assert {r: len(p) for r, p in listing.left_out.items()} == {"a picture of another sequence than data.pictures": 6}


@pytest.mark.parametrize("pattern", ["img.jpg", "img_{:5}.jpg", "a/{:05}.jpg", "{}{}.jpg", "img_{name}.jpg"])
def test_a_pattern_of_pictures_has_one_number(pattern: str) -> None:
    with pytest.raises(ValidationError):
        VIDEOS.validate_python({"kind": "folder", "pictures": pattern})


def test_the_hash_of_pictures_follows_their_content(tmp_path: Path) -> None:
    lay(tmp_path, *pictures("a/one"), *pictures("b/two"))
    data = VIDEOS.validate_python({"kind": "folder"})

    def files() -> dict[str, str]:
        return dict(fingerprint(data, tmp_path, HashMemo(tmp_path / ".memo.json")).files)

    before = files()
    assert files() == before and all(mark.partition(":")[0] != "-1" for mark in before.values())
    (tmp_path / "a/one/img_00002.jpg").write_bytes(b"other")
    changed = files()
    assert [path for path in before if before[path] != changed[path]] == ["a/one/img_{:05}.jpg"]
    lay(tmp_path, "b/two/img_00004.jpg")
    assert files()["b/two/img_{:05}.jpg"] != changed["b/two/img_{:05}.jpg"]


# ---------------------------------------------------------------- lists and tables


def part(address: str) -> str:
    return str(Address.read(Path(), address).part or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v/a 1.mp4 0\nv/b 10.mp4 1\n", {"v/a 1.mp4": "0", "v/b 10.mp4": "1"}),  # SlowFast
        ("v/a.mp4,0\nv/b.mp4,1\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),
        ("v/a, b.mp4 0\nv/b, c.mp4 1\n", {"v/a, b.mp4": "0", "v/b, c.mp4": "1"}),
        ("v/a.mp4\t0\r\nv/b.mp4\t1\r\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),
        ("v/a.mp4;walking, slowly\nv/b.mp4;running\n", {"v/a.mp4": "walking, slowly", "v/b.mp4": "running"}),
        ('"v/a b.mp4" 0\n"v/c.mp4" 1\n', {"v/a b.mp4": "0", "v/c.mp4": "1"}),
        ("v/a.mp4 30 0\nv/b.mp4 8 1\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),  # VideoMAE, with frame counts
        ("\ufeffv/a.mp4 walk\n\nv/b.mp4 run\n", {"v/a.mp4": "walk", "v/b.mp4": "run"}),
        ("./v/a.mp4 0\nv//b.mp4 1\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),
        ("v\\a.mp4,0\nv\\b.mp4,1\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),
        ("v/a.mp4 1 0.5 2.5\nv/a.mp4 2 2.5 4\n", {"v/a.mp4#t=0.5,2.5": "1", "v/a.mp4#t=2.5,4": "2"}),
        ("v/a.mp4,0.0,2.5,walk\nv/b.mp4,1.25,3,run\n", {"v/a.mp4#t=0,2.5": "walk", "v/b.mp4#t=1.25,3": "run"}),
        ("path,label,start,end\nv/a.mp4,x,0,2\nv/a.mp4,y,2,5.5\n", {"v/a.mp4#t=0,2": "x", "v/a.mp4#t=2,5.5": "y"}),
        ("path label\nv/a 1.mp4 x\nv/b.mp4 y\n", {"v/a 1.mp4": "x", "v/b.mp4": "y"}),
        ("Path;Label\nv/a.mp4;x\nv/b.mp4;y\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
        ("file_name,label\nv/a.mp4,x\nv/b.mp4,y\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
        ("v/a.mp4,0,\nv/b.mp4,1,\n", {"v/a.mp4": "0", "v/b.mp4": "1"}),
        ("path,label,\nv/a.mp4,x,\nv/b.mp4,y,\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
        ('path,label\nv/a.mp4,"x, y"\nv/b.mp4,"say ""z"""\n', {"v/a.mp4": "x, y", "v/b.mp4": 'say "z"'}),
        ("Unnamed: 0,path,label\n0,v/a.mp4,x\n1,v/b.mp4,y\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
        ("path,label\nv/a.mp4,0.0\nv/b.mp4,10.0\nv/c.mp4,\n", {"v/a.mp4": "0", "v/b.mp4": "10", "v/c.mp4": ""}),
        ("path,label,group\nv/a.mp4,x,nan\nv/b.mp4,NaN,nan\n", {"v/a.mp4": "x", "v/b.mp4": ""}),
        ("v/a.mp4 0\nv/b.mp4 -1\nv/c.mp4 1\n", {"v/a.mp4": "0", "v/b.mp4": "", "v/c.mp4": "1"}),
        ("path,label\nv/a.mp4,None\nv/b.mp4,wave\n", {"v/a.mp4": "None", "v/b.mp4": "wave"}),
        (
            "path,label,start_frame,num_frames\nv/a.mp4,x,10,4\nv/a.mp4,y,20,4\n",
            {"v/a.mp4#f=10,14": "x", "v/a.mp4#f=20,24": "y"},
        ),
        ("path,label,split\nv/a.mp4,x,Training\nv/b.mp4,y,validation\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
        ("path,label,clean\nv/a.mp4,x,True\nv/b.mp4,y,0.0\n", {"v/a.mp4": "x", "v/b.mp4": "y"}),
    ],
)
def test_lists_of_the_field_are_read(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    table(tmp_path, text)
    assert labels(listed(tmp_path, kind="csv", path="t.csv")) == expected


def test_lists_of_folders_of_pictures(tmp_path: Path) -> None:
    lay(tmp_path, *pictures("v/one", 8), *pictures("v/two 2", 5))
    for text, parts in (
        ("v/one 8 0\nv/two 2 5 1\n", ["", ""]),
        ("v/one 0\nv/two 2 1\n", ["", ""]),
        ("v/one 6 0\nv/two 2 9 1\n", ["#f=0,6", "#f=0,9"]),  # the decoder says that only 5 of 9 are there
        ("v/one,2,4,0\nv/two 2,0,5,1\n", ["#f=2,6", ""]),  # mmaction2's lists with offsets
    ):
        table(tmp_path, text)
        listing = listed(tmp_path, kind="csv", path="t.csv")
        assert [e.label for e in listing.entries] == ["0", "1"]
        assert [part(e.path) for e in listing.entries] == parts, text
        assert listing.entries[0].path.startswith("v/one/img_{:05}.jpg") and listing.entries[0].group == "v/one"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\nv/a.mp4,x\nv/b.mp4\n", "t.csv:3: the row has 1 cells, fewer than the header (2)"),
        ("v/a.mp4,0\nv/b.mp4,0,1\n", "t.csv:2: the row has 3 cells, more than the first row (2)"),
        ('path,label\nv/a.mp4,"x\nv/b.mp4,y"\n', 't.csv:2: a stray quote: v/a.mp4,"x'),
        ('path,label\nv/a.mp4,"x" y\n', 't.csv:2: a stray quote: v/a.mp4,"x" y'),
        ('v/a.mp4,"0\nv/b.mp4,1\n', 't.csv:1: a stray quote: v/a.mp4,"0'),
        ("path,lable\nv/a.mp4,x\n", "t.csv:1: unknown column 'lable'"),
        ("path,label,label\nv/a.mp4,x,y\n", "t.csv:1: two columns are 'label'"),
        ("clip,walk\nother,run\n", "t.csv:1: neither a header nor a clip with its label: clip,walk"),
        ("v/a.mp4,1,2,3\n", "t.csv:1: the meaning of its 4 columns cannot be told"),
        ("v/a.mp4 x\nv/a.mp4 x\n", "v/a.mp4 is listed 2 times"),
        ("path,label,start,end\nv/a.mp4,x,3,2\n", "t.csv:2: end 2 must be after start 3"),
        ("path,label,start,end\nv/a.mp4,x,soon,2\n", "t.csv:2: start must be a number, not 'soon'"),
        ("path,label\nv/a#t=1,2,x\n", "t.csv:2: the row has 3 cells"),
        ("path;label\nv/a.mp4#t=1,2;x\n", "t.csv:2: 'v/a.mp4#t=1,2' has a meaning of its own"),
        ("", "t.csv lists no clips"),
        ("path,label\n", "lists no clips"),
        ("path,,label\nv/a.mp4,odd,x\n", "t.csv:1: column 2 has no name"),
        ("path,label\n,x\n", "t.csv:2: the path is missing"),
        ("p\0a", "is not text in UTF-8"),
        ("clip,action\nv/a.mp4,x\nv/b.mp4,y\n", "t.csv:1: 'clip' is no clip | if it is a header, its names must be of"),
        ("v/a.mp4,x\npath,label\nv/b.mp4,y\n", "t.csv:2: 'path' is no clip"),
        ("sep=;\npath;label\nv/a.mp4;x\n", "t.csv:1: "),
        ("v/a.mp4 run\nv/b.mp4 walk fast\n", "t.csv:2: 'v/b.mp4 walk' is no clip | separate the columns by commas"),
        ("v/a.mp4 1 2\nv/b.mp4 3\n", "t.csv:1: 'v/a.mp4 1' is no clip"),
        ("path,label,offset\nv/a.mp4,x,3\n", "t.csv:2: an offset needs the number of frames"),
    ],
)
def test_wrong_tables_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    table(tmp_path, text)
    assert words in refused(tmp_path, kind="csv", path="t.csv")


def test_a_table_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\nv/a.mp4,x\nv/b.mp4,café\n".encode("latin-1"))
    assert "t.csv:3 cannot be read as a table in UTF-8" in refused(tmp_path, kind="csv", path="t.csv")
    (tmp_path / "t.csv").write_bytes("path,label\nv/a.mp4,x\n".encode("utf-16"))
    assert "UTF-8" in refused(tmp_path, kind="csv", path="t.csv")


def test_stated_columns_and_other_headers(tmp_path: Path) -> None:
    table(tmp_path, "clip,seconds,what\nv/a.mp4,3.5,x\nv/b.mp4,4,y\n")
    columns = ("path", "ignore", "label")
    assert labels(listed(tmp_path, kind="csv", path="t.csv", columns=columns)) == {"v/a.mp4": "x", "v/b.mp4": "y"}
    said = refused(tmp_path, kind="csv", path="t.csv", columns=("path", "label"))
    assert "t.csv:1: data.columns has 2 names, but the row has 3 cells" in said
    for wrong in (("path",), ("path", "label", "label"), ("path", "name")):
        with pytest.raises(ValidationError):
            VIDEOS.validate_python({"kind": "csv", "path": "t.csv", "columns": wrong})


def test_columns_in_any_order_and_paths_without_a_suffix(tmp_path: Path) -> None:
    lay(tmp_path, "v/1.mp4", "v/2.webm", *pictures("f/c1", 10))
    table(tmp_path, "label,path,fps\nx,v/1.mp4,30\ny,v/2.webm,25\n")
    columns = ("label", "path", "ignore")
    assert labels(listed(tmp_path, kind="csv", path="t.csv", columns=columns)) == {"v/1.mp4": "x", "v/2.webm": "y"}
    table(tmp_path, "v/1 0\nv/2 1\n")
    assert labels(listed(tmp_path, kind="csv", path="t.csv")) == {"v/1.mp4": "0", "v/2.webm": "1"}
    table(tmp_path, "f/gone 10 0\nf/c1 10 1\n")  # the first folder is missing, and the row is no header
    columns = ("path", "frames", "label")
    assert set(labels(listed(tmp_path, kind="csv", path="t.csv", columns=columns))) == {"f/gone", "f/c1/img_{:05}.jpg"}
    (note,) = listed(tmp_path, kind="csv", path="t.csv").notes
    assert note == "t.csv: its columns are read as path, frames, label; data.columns can say otherwise"


def test_names_that_unicode_writes_in_two_ways_are_found(tmp_path: Path) -> None:
    lay(tmp_path, "v/cafe\u0301.mp4")
    table(tmp_path, "v/caf\u00e9.mp4,x\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert set(labels(listing)) == {"v/cafe\u0301.mp4"} and listing.unlisted == () and listing.notes == ()


def test_a_data_root_behind_a_link(tmp_path: Path) -> None:
    lay(tmp_path, "real/v/1.mp4")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    table(tmp_path / "real", f"{tmp_path}/data/v/1.mp4,x\n")
    for root in (tmp_path / "data", tmp_path / "real"):
        listing = listed(root, kind="csv", path="t.csv")
        assert set(labels(listing)) == {"v/1.mp4"} and listing.notes == () and listing.unlisted == ()
    table(tmp_path / "real", "D:\\data\\v\\1.mp4,x\n")
    assert "1 clips lie outside of the data root" in listed(tmp_path / "real", kind="csv", path="t.csv").notes[0]


def test_unlisted_clips_of_other_folders_are_counted(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4", "a/2.mp4", "b/3.mp4")
    table(tmp_path, "a/1.mp4 x\na/2.mp4 y\n")
    assert listed(tmp_path, kind="csv", path="t.csv").unlisted == ("b/3.mp4",)


def test_a_list_for_each_split(tmp_path: Path) -> None:
    for name, ids in (("train", "abcd"), ("val", "ef"), ("test", "gh")):
        table(tmp_path, "".join(f"{i}.mp4 {n % 2}\n" for n, i in enumerate(ids)), f"lists/{name}.csv")
    data = {"kind": "csv", "path": "lists/train.csv", "val": "lists/val.csv", "videos": "v"}
    assert splits(listed(tmp_path, **data)) == {"train": 4, "val": 2}
    listing = listed(tmp_path, **data, test="lists/test.csv")
    assert splits(listing) == {"train": 4, "val": 2, "test": 2} and listing.root == tmp_path / "v"
    assert set(listing.lists) == {"table", "val", "test"}
    table(tmp_path, "e.mp4 0\nf.mp4 1\n", "lists/test.csv")
    assert "lists the same clips as" in refused(tmp_path, **data, test="lists/test.csv")
    table(tmp_path, "a.mp4 0\n", "lists/test.csv")
    assert "a.mp4 is listed 2 times" in refused(tmp_path, **data, test="lists/test.csv")


def test_absolute_paths_below_the_data_root_become_relative(tmp_path: Path) -> None:
    lay(tmp_path, "lists/here.mp4", "videos/a.mp4", "videos/b.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "videos")
    rows = [tmp_path / "lists/here.mp4", tmp_path / "videos/a.mp4", tmp_path / "link/b.mp4"]
    table(tmp_path, "path,label\n" + "".join(f"{path},x\n" for path in rows), "lists/t.csv")
    listing = listed(tmp_path, kind="csv", path="lists/t.csv")
    assert set(labels(listing)) == {"here.mp4", "../videos/a.mp4", "../link/b.mp4"} and listing.notes == ()
    moved = tmp_path / "moved"
    lay(moved, "lists/here.mp4")
    table(moved, f"path,label\n{tmp_path / 'videos/a.mp4'},x\n{moved / 'lists/here.mp4'},y\n", "lists/t.csv")
    said = listed(moved, kind="csv", path="lists/t.csv").notes
    assert len(said) == 1 and said[0].startswith("1 clips lie outside of the data root, such as ")


def test_lists_with_another_suffix_or_case_find_the_files(tmp_path: Path) -> None:
    lay(tmp_path, "v/a.mp4", "v/B.mkv", "v/c.avi", "v/c.mp4")
    table(tmp_path, "v/a.avi x\nv/b.avi y\nv/c.avi z\nv/d.avi w\n")
    listing = listed(tmp_path, kind="csv", path="t.csv")
    assert set(labels(listing)) == {"v/a.mp4", "v/B.mkv", "v/c.avi", "v/d.avi"}
    assert listing.unlisted == ("v/c.mp4",)
    assert listing.notes == ("2 clips have another suffix on the disk than in the list, such as v/a.avi",)


def test_ids_of_kinetics_that_differ_in_case_alone_are_not_mixed_up(tmp_path: Path) -> None:
    lay(tmp_path, "k/train/aB_000001_000002.webm", "k/val/x_000001_000002.mkv")
    head = "label,youtube_id,time_start,time_end,split\n"
    table(tmp_path, f"{head}walk,Ab,1,2,train\nwalk,aB,1,2,train\n", "k/annotations/train.csv")
    table(tmp_path, f"{head}walk,x,1,2,val\n", "k/annotations/val.csv")
    paths = set(labels(listed(tmp_path, kind="kinetics", path="k", lists="csv")))
    assert paths == {"train/Ab_000001_000002.mp4", "train/aB_000001_000002.webm", "val/x_000001_000002.mkv"}
    table(tmp_path, f"{head}walk,x,1,2\n", "k/annotations/val.csv")
    said = refused(tmp_path, kind="kinetics", path="k", lists="csv")
    assert "val.csv:2: the row has 4 cells, fewer than the header (5)" in said


def test_kinetics_as_pictures_groups_by_source(tmp_path: Path) -> None:
    for clip in ("train/walk/a_000001_000011", "train/run/b_000001_000011", "val/walk/c_000001_000011"):
        lay(tmp_path, *pictures(f"k/{clip}", 3))
    lay(tmp_path, "k/test/1.mp4")
    listing = listed(tmp_path, kind="kinetics", path="k")
    assert {e.group for e in listing.entries} == {"a", "b", "c"} and splits(listing) == {"": 2, "test": 1}
    assert listing.unlisted == ("test/1.mp4",)


# ---------------------------------------------------------------- Something-Something v2 and Jester


def test_something_something_v2(tmp_path: Path) -> None:
    root = tmp_path / "ssv2"
    videos = "20bn-something-something-v2"
    lay(root, *(f"{videos}/{i}.webm" for i in range(1, 9)), f"{videos}/99.webm")
    names = {
        "Holding something next to something": "0",
        "Closing something": "1",
        "Burying something in something": "2",
    }
    table(root, json.dumps(names), "labels/labels.json")
    templates = ["Closing [something]", "Holding [something] next to [something]", "Burying [something] in [something]"]
    rows = [{"id": str(i), "label": "closing a box", "template": templates[i % 3]} for i in range(1, 9)]
    table(root, json.dumps(rows[:6]), "labels/train.json")
    table(root, json.dumps(rows[6:]), "labels/validation.json")
    listing = listed(tmp_path, kind="ssv2")
    assert listing.classes == tuple(names) and splits(listing) == {"": 6, "test": 2}
    assert labels(listing)[f"{videos}/1.webm"] == "Holding something next to something"
    assert listing.unlisted == (f"{videos}/99.webm",)
    table(root, json.dumps([{"id": "1", "template": "Opening [something]"}]), "labels/validation.json")
    assert "validation.json: entry 1 needs an id and a template" in refused(tmp_path, kind="ssv2")


def test_jester(tmp_path: Path) -> None:
    root = tmp_path / "jester"
    for clip in range(1, 7):
        lay(root, *pictures(f"20bn-jester-v1/{clip}", 4, "{:05}.jpg"))
    table(root, "Swiping Left\nSwiping Right\n", "jester-v1-labels.csv")
    rows = [f"{i};{('Swiping Right', 'Swiping Left')[i % 2]}\n" for i in range(1, 8)]
    table(root, "".join(rows[:5]), "jester-v1-train.csv")
    table(root, "".join(rows[5:]), "jester-v1-validation.csv")
    listing = listed(tmp_path, kind="jester")
    assert listing.classes == ("Swiping Left", "Swiping Right") and splits(listing) == {"": 5, "test": 2}
    assert labels(listing)["20bn-jester-v1/2/{:05}.jpg"] == "Swiping Right"
    assert "20bn-jester-v1/7/{:05}.jpg" in labels(listing)  # listed and missing
    table(root, "1;Swiping Up\n", "jester-v1-validation.csv")
    assert "jester-v1-validation.csv:1: 'Swiping Up' is no class" in refused(tmp_path, kind="jester")


def test_jester_with_its_newer_tables(tmp_path: Path) -> None:
    root = tmp_path / "jester"
    head = "video_id,label,label_id,frames\n"
    for clip in range(1, 5):
        lay(root, *pictures(f"20bn-jester-v1/{clip}", 4, "{:05}.jpg"))
    table(root, head + "1,Swiping Right,1,4\n2,Swiping Left,0,4\n3,Swiping Left,0,4\n", "annotations/Train.csv")
    table(root, head + "4,Swiping Right,1,4\n", "annotations/Validation.csv")
    listing = listed(tmp_path, kind="jester")
    assert listing.classes == ("Swiping Left", "Swiping Right") and splits(listing) == {"": 3, "test": 1}


# ---------------------------------------------------------------- classes


def test_integer_names_sort_as_integers(tmp_path: Path) -> None:
    lay(tmp_path, *(f"{name}/1.mp4" for name in range(12)))
    assert listed(tmp_path, kind="folder").classes == tuple(map(str, range(12)))
    lay(tmp_path, "x/1.mp4")
    assert listed(tmp_path, kind="folder").classes == tuple(sorted([*map(str, range(12)), "x"]))
    lay(tmp_path / "gap", "-1/1.mp4", "2/1.mp4", "10/1.mp4")
    assert listed(tmp_path / "gap", kind="folder").classes == ("-1", "2", "10")


def test_numbers_that_are_left_out_are_said(tmp_path: Path) -> None:
    table(tmp_path, "a.mp4 0\nb.mp4 1\nc.mp4 4\n")
    (note,) = listed(tmp_path, kind="csv", path="t.csv").notes
    assert note.startswith("no clip has the label 2, 3: ids are counted without it")


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("classes.txt", "walk\nrun\nsit down\n", 0),
        ("classes.txt", "0 walk\n1 run\n2 sit down\n", 0),
        ("classInd.txt", "2 run\r\n1 walk\r\n3 sit down\r\n", 1),
        ("labels.csv", "id,name\n0,walk\n1,run\n2,sit down\n", 0),
        ("labels.csv", "name,id\nwalk,0\nrun,1\nsit down,2\n", 0),
        ("labels.json", '["walk", "run", "sit down"]', 0),
        ("labels.json", '{"run": 1, "walk": 0, "sit down": 2}', 0),
        ("labels.json", '{"1": "run", "0": "walk", "2": "sit down"}', 0),
        ("labels.tsv", "walk\t0\nrun\t1\nsit down\t2\n", 0),
        ("classes.txt", "class_name\nwalk\nrun\nsit down\n", 0),
        ("classes.txt", "# mine\nwalk\nrun\nsit down\n", 0),
        ("classes.csv", "index,class\n0,walk\n1,run\n2,sit down\n", 0),
        ("classes.csv", '"1","run"\n"0","walk"\n"2","sit down"\n', 0),
        ("labels.json", '{"\\"run\\"": 1, "walk": 0, "sit down": 2}', 0),
    ],
)
def test_a_file_of_classes_states_an_order(tmp_path: Path, name: str, text: str, first: int) -> None:
    table(tmp_path, text, name)
    table(tmp_path, "".join(f"{i}.mp4 {n}\n" for i, n in enumerate([first, first + 1, first + 2])))
    listing = listed(tmp_path, kind="csv", path="t.csv", classes=name)
    assert listing.classes == ("walk", "run", "sit down")
    assert labels(listing) == {"0.mp4": "walk", "1.mp4": "run", "2.mp4": "sit down"}
    assert listing.lists["classes"] == tmp_path / name
    table(tmp_path, "0.mp4;sit down\n1.mp4;walk\n")
    assert labels(listed(tmp_path, kind="csv", path="t.csv", classes=name)) == {"0.mp4": "sit down", "1.mp4": "walk"}


def test_numbers_that_are_equal_are_said_and_levels_stay_names(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na.mp4,01\nb.mp4,1\nc.mp4,0\n")
    assert listed(tmp_path, kind="csv", path="t.csv").notes == (
        "the classes '01' and '1' are the same number: are they one?",
    )
    table(tmp_path, "level 1\nlevel 2\n", "c.txt")
    table(tmp_path, "a.mp4,level 2\nb.mp4,level 1\n")
    assert listed(tmp_path, kind="csv", path="t.csv", classes="c.txt").classes == ("level 1", "level 2")


def test_a_list_of_classes_in_the_spec(tmp_path: Path) -> None:
    lay(tmp_path, "b/1.mp4", "a/1.mp4")
    assert listed(tmp_path, kind="folder", classes=["b", "a"]).classes == ("b", "a")
    assert "the label 'b' is none of the 2 classes of data.classes" in refused(
        tmp_path, kind="folder", classes=["a", "c"]
    )
    assert "data.classes: the class 'a' is listed twice" in refused(tmp_path, kind="folder", classes=["a", "b", "a"])
    lay(tmp_path / "n", "10/1.mp4", "9/1.mp4")
    assert listed(tmp_path / "n", kind="folder", classes=[10, 9]).classes == ("10", "9")


@pytest.mark.parametrize(
    ("rows", "first", "words"),
    [
        ([0, 3], 0, "the label 3 is no class: the classes of"),
        ([1, 2], 1, "counts classes from 1, and the labels may count from 0 or 1"),
        ([0, 4], 1, "the label 4 is no class"),
    ],
)
def test_numbers_that_are_no_class_are_refused(tmp_path: Path, rows: list[int], first: int, words: str) -> None:
    table(tmp_path, "".join(f"{first + i} {name}\n" for i, name in enumerate(["x", "y", "z"])), "c.txt")
    table(tmp_path, "".join(f"{i}.mp4 {n}\n" for i, n in enumerate(rows)))
    assert words in refused(tmp_path, kind="csv", path="t.csv", classes="c.txt")


def test_numbers_from_0_beside_a_list_from_1(tmp_path: Path) -> None:
    """mmaction2's lists of UCF101 count from 0, its classInd.txt counts from 1."""
    table(tmp_path, "1 x\n2 y\n3 z\n", "classInd.txt")
    table(tmp_path, "a.mp4 0\nb.mp4 2\n")
    listing = listed(tmp_path, kind="csv", path="t.csv", classes="classInd.txt")
    assert labels(listing) == {"a.mp4": "x", "b.mp4": "z"} and listing.classes == ("x", "y", "z")


def test_names_are_brought_to_one_form(tmp_path: Path) -> None:
    lay(tmp_path, "caf\u00e9/1.mp4", "cafe\u0301/2.mp4", "Walk/1.mp4", "walk/1.mp4", " run/1.mp4")
    listing = listed(tmp_path, kind="folder")
    assert listing.classes == ("Walk", "caf\u00e9", "run", "walk")
    first, second = listing.notes
    assert "the class 'caf\u00e9' is written in 2 ways ('cafe\\u0301', 'caf\\xe9')" in first
    assert second == "the classes 'Walk' and 'walk' differ only in case or spacing: are they one?"


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["sit", "talk", "sit|talk"], ["sit|talk"]),
        (["sit;talk", "talk;run"], ["sit;talk", "talk;run"]),
        (["sit", "talk", "sit,talk"], ["sit,talk"]),
        (["wash/dry", "wash"], ["wash/dry"]),
        (["Lifting something up", "Lifting something up, then letting it drop down"], []),
        (["clean and jerk", "clean"], []),
        (["a/c", "tv"], []),
    ],
)
def test_a_label_that_is_made_of_others_is_said(tmp_path: Path, names: Sequence[str], made: list[str]) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label"], *([f"{i}.mp4", name] for i, name in enumerate(names))])
    notes = listed(tmp_path, kind="csv", path="t.csv").notes
    assert [note.split("'")[1] for note in notes] == made
    assert all("one label a clip" in note for note in notes)


def test_the_order_of_the_classes_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    lay(tmp_path, "b/1.mp4", "a/1.mp4")

    def mark(**more: Any) -> tuple[str, tuple[str, ...]]:
        entry = fingerprint(VIDEOS.validate_python({"kind": "folder", **more}), tmp_path, HashMemo(tmp_path / ".m"))
        return entry.fingerprint, entry.classes

    plain, stated = mark(), mark(classes=["b", "a"])
    assert plain != stated and stated[1] == ("b", "a") and mark(classes=["a", "b"])[0] == plain[0]


# ---------------------------------------------------------------- addresses


@given(st.sampled_from(["seconds", "frames"]), st.integers(0, 10**6), st.integers(1, 10**6))
def test_an_address_is_read_as_it_was_written(unit: Any, start: int, length: int) -> None:
    written = Part(unit, float(start), float(start + length))
    assert Address.read(Path("/v"), f"a#b/c.mp4{written}") == Address(Path("/v/a#b/c.mp4"), written)


def test_plain_names_and_others() -> None:
    assert all(is_plain(name) for name in ("a.mp4", "a#1.mp4", "#437_How.avi", "a#t=.mp4", "{x}.mp4"))
    assert not any(is_plain(name) for name in ("a.mp4#t=1,2", "a.mp4#f=0,8", "a/{}.jpg", "{:05}.jpg", "{:05d}.png"))


def test_a_file_is_no_folder_and_a_folder_no_table(tmp_path: Path) -> None:
    lay(tmp_path, "a/1.mp4")
    assert "is not a table | a folder of videos is data: {kind: folder}" in refused(tmp_path, kind="csv", path="a")
    assert "is not a folder" in refused(tmp_path, kind="folder", path="a/1.mp4")
    with pytest.raises(UsageError, match=r"the table .*gone does not exist"):
        listed(tmp_path, kind="csv", path="gone")
    assert isinstance(DataError("x"), StagedkdError) and ".mts" in VIDEO_SUFFIXES
    assert Entry("a", "b", "c").split == ""
