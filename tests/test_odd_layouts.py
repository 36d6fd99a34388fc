"""Odd folders, tables and class files are read right, refused with a hint, or said in a note."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_layouts import labels, lay, listed, refused, splits

# ---------------------------------------------------------------- split folders


@pytest.mark.parametrize(
    ("names", "order"),
    [
        *(("trainset testset", "train test"), ("TrainData TestData", "train test"), ("tr va te", "train val test")),
        *(("trn tst", "train test"), ("ucf_train ucf_test", "train test"), ("trainval test", "train test")),
        *(
            ("my-train my-val my-test", "train val test"),
            ("train_val test", "train test"),
            ("TRAIN TEST", "train test"),
        ),
        *(("UCFTrain UCFTest", "train test"), ("1_train 2_val", "train val"), ("trainVideos valVideos", "train val")),
        *(("ucf_tr ucf_te", "train test"), ("trn vld tst", "train val test"), ("datatrain datatest", "train test")),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_folders_that_are_splits_beyond_doubt(tmp_path: Path, names: str, order: str, inner: bool) -> None:
    for name in names.split():
        lay(tmp_path, *(f"{c}/{name}/1.mp4" if inner else f"{name}/{c}/1.mp4" for c in ("walk", "run")))
    listing = listed(tmp_path, kind="folder")
    assert listing.classes == ("run", "walk")
    expected = dict.fromkeys(order.split(), 2)
    if "val" not in expected:
        expected = {"": 2, "test": 2}
    assert splits(listing) == expected
    told = {name: name for name in sorted(names.split())}
    where = " in the class folders" if inner else ""
    assert len(listing.notes) == 1
    assert set(listing.notes[0].partition(": that no")[0].split("folders ")[1].split(" in ")[0].split(", ")) == {
        f"{name}/" for name in told
    }
    assert where in listing.notes[0]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            "val/a/1.mp4 test/a/1.mp4",
            "has split folders (test/, val/), and none is for training"
            " | name the folder of the training clips train; if they are classes, set data: {folders: classes}",
        ),
        (
            "a/val/1.mp4 a/test/1.mp4 b/test/2.mp4",
            "has split folders (a/test/, a/val/, b/test/), and none is for training"
            " | name the folder of the training clips train; if they are classes, set data: {folders: classes}",
        ),
        (
            "val/1.mp4 test/1.mp4",
            ": test, val are named as splits and hold no class folders | if they are classes, set data: {folders:"
            " classes}; if tables hold the labels, name them (data.kind: csv)",
        ),
        (
            "ucf_train/1.mp4 ucf_test/1.mp4",
            ": ucf_test, ucf_train are named as splits and hold no class folders | if they are classes, set data:"
            " {folders: classes}; if tables hold the labels, name them (data.kind: csv)",
        ),
        *(
            (
                f"train/a/1.mp4 {bare}/1.mp4",
                f": {bare}/ lies beside train/, and its clips have no class | list the clips in a table, where a label"
                f" may be empty (data.kind: csv); or move {bare}/ away",
            )
            for bare in ("unlabeled", "Unlabelled_data", "un_labeled")
        ),
        (
            "labeled/a/1.mp4 unlabeled/1.mp4",
            ": unlabeled/ lies beside labeled/, and its clips have no class | list the clips in a table, where a label"
            " may be empty (data.kind: csv); or move unlabeled/ away",
        ),
        (
            "train/a/1.mp4 holdout/a/1.mp4",
            "has split folders (train/) and holdout/, which also holds videos"
            " | move holdout/ away; or, if all of them are classes, set data: {folders: classes}",
        ),
        (
            "a/train/1.mp4 a/test/1.mp4 b/1.mp4",
            ": a/test/, a/train/ are named as splits, and b/ holds other clips"
            " | put all clips into split folders; or, if they are none, set data: {folders: classes}",
        ),
        (
            "my/train/a/1.mp4 my/test/a/1.mp4",
            "holds one folder, my/, and the splits in it"
            " | end data.path in my; if they are classes, set data: {folders: classes}",
        ),
    ],
)
def test_folders_that_may_be_splits_are_refused(tmp_path: Path, paths: str, said: str) -> None:
    lay(tmp_path / "r", *paths.split())
    assert refused(tmp_path, kind="folder", path="r") == f"r{'' if said.startswith(':') else ' '}{said}"
    lay(tmp_path / "r", "zebra/1.mp4")
    classes = listed(tmp_path, kind="folder", path="r", folders="classes").classes
    assert set(classes) == {path.partition("/")[0] for path in (*paths.split(), "zebra/")}


def test_classes_that_are_named_like_splits_are_said(tmp_path: Path) -> None:
    lay(tmp_path, "train/1.mp4", "bus/1.mp4", "car/1.mp4")
    as_splits = "splits are read where every folder is one and holds class folders"
    assert listed(tmp_path, kind="folder").notes == (f"train/ is a class by its place: {as_splits}",)
    lay(tmp_path / "b", "tr/1.mp4", "te/1.mp4")
    listing = listed(tmp_path / "b", kind="folder")
    assert listing.classes == ("te", "tr") and listing.notes == (f"te/, tr/ are classes by its place: {as_splits}",)
    lay(tmp_path / "c", "vehicle/train/1.mp4", "vehicle/bus/1.mp4", "animal/1.mp4")
    listing = listed(tmp_path / "c", kind="folder")
    assert listing.classes == ("animal", "vehicle")
    assert listing.notes == ("vehicle/train/ is named as a split, and is read as a part of its class",)
    lay(tmp_path / "d", "bullet_train/a/1.mp4", "test_drive/a/1.mp4", "train_ride/a/1.mp4")
    listing = listed(tmp_path / "d", kind="folder")
    assert len(listing.classes) == 3 and listing.notes == ()


def test_split_folders_below_the_classes_keep_their_clips_apart(tmp_path: Path) -> None:
    lay(tmp_path, "walk/train/1.mp4", "walk/walk_test/2.mp4", "run/train/3.mp4", "run/val/deep/4.mp4")
    for folders in (None, "splits"):
        listing = listed(tmp_path, kind="folder", folders=folders)
        assert {e.path: (e.label, e.split) for e in listing.entries} == {
            "walk/train/1.mp4": ("walk", "train"),
            "walk/walk_test/2.mp4": ("walk", "test"),
            "run/train/3.mp4": ("run", "train"),
            "run/val/deep/4.mp4": ("run", "val"),
        }
    lay(tmp_path, "run/test/5.xyz")
    assert "the class run/test has no clip" in refused(tmp_path, kind="folder")
    assert labels(listed(tmp_path, kind="folder", folders="classes"))["run/train/3.mp4"] == "run"
