"""Data: layouts and their splits without leaks, fingerprints, draws, weak labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd.data.draws import permutation, uniform
from stagedkd.data.fingerprint import HashMemo, damaged_memo, fingerprint
from stagedkd.data.index import Entry, split_entries
from stagedkd.data.labels import Clips, weaken
from stagedkd.data.layouts import list_clips
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import (
    Asymmetric,
    Csv,
    Folder,
    Hmdb51,
    InstanceDependent,
    Kinetics,
    Labels,
    PairFlip,
    Symmetric,
    Ucf101,
    Videos,
)
from tests.videos import write_video

# ---------------------------------------------------------------- index and splits


def test_folder_and_csv_give_the_same_clips(tmp_path: Path) -> None:
    for name in ("run/a.avi", "run/b.MP4", "walk/c.avi", "walk/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clips.csv").write_text("path,label\nwalk/c.avi,walk\nrun/a.avi,run\nrun/b.MP4,run\n", "utf-8")
    folder = list_clips(Folder(kind="folder"), tmp_path).entries
    table = list_clips(Csv(kind="csv", path="clips.csv"), tmp_path).entries
    assert folder == table and [e.path for e in folder] == ["run/a.avi", "run/b.MP4", "walk/c.avi"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path\na.avi\n", "columns path and label are needed"),
        ("path,label,colour\na.avi,x,red\n", "unknown column 'colour'"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.avi,x\na.avi,x\n", "a.avi is listed 2 times"),
        ("path,label,split\na.avi,x,holdout\n", "clips.csv:2: split must be train, val or test, not 'holdout'"),
        ("path,label,clean\na.avi,x,yes\n", "clips.csv:2: clean must be 0 or 1"),
        ("path,label,split\na.avi,,val\n", "clips.csv:2: a val clip needs a label"),
        ("path,label\n,x\n", "clips.csv:2: the path is missing"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "clips.csv").write_text(text, "utf-8")
    with pytest.raises(DataError, match=words):
        list_clips(Csv(kind="csv", path="clips.csv"), tmp_path)


def test_missing_data_name_the_settings(tmp_path: Path) -> None:
    for data in (Folder(kind="folder", path="none"), Csv(kind="csv", path="none.csv")):
        with pytest.raises(UsageError) as caught:
            list_clips(data, tmp_path)
        assert "STAGEDKD_DATA" in caught.value.hint


ENTRY = st.builds(
    lambda i, label, group: Entry(f"{i}.avi", f"c{label}", f"g{group}"),
    st.integers(0, 999),
    st.integers(0, 3),
    st.integers(0, 15),
)


@settings(max_examples=100)
@given(st.lists(ENTRY, min_size=1, max_size=60), st.integers(2, 6), st.integers(0, 99))
def test_no_group_is_in_two_splits_and_folds_cover_all(entries: list[Entry], folds: int, seed: int) -> None:
    validated: Counter[str] = Counter()
    for fold in range(folds):
        data = Csv(kind="csv", path="x", folds=folds, fold=fold, test_folds=0, seed=seed)
        placed = split_entries(entries, data)
        assert len(placed) == len(entries)
        where: dict[str, set[str]] = {}
        for entry in placed:
            where.setdefault(entry.group, set()).add(entry.split)
        assert all(len(splits) == 1 for splits in where.values())
        validated.update(group for group, splits in where.items() if splits == {"val"})
    assert set(validated.values()) <= {1} and set(validated) == {e.group for e in entries}


def test_weizmann_people_are_never_shared(clips: Path) -> None:
    for fold in range(3):
        data = Csv(kind="csv", path="weizmann/clips.csv", folds=3, fold=fold, test_folds=0)
        entries = list_clips(data, clips).entries
        placed = split_entries(entries, data)
        people = {s: {e.group for e in placed if e.split == s} for s in ("train", "val")}
        assert len(people["train"]) == 6 and len(people["val"]) == 3 and not people["train"] & people["val"]


def test_given_splits_win_and_a_torn_group_is_refused() -> None:
    data = Csv(kind="csv", path="x", folds=2, test_folds=0)
    rows = [Entry("a", "x", "g", "train"), Entry("b", "x", "g"), Entry("c", "x", "h", "val")]
    assert {e.path: e.split for e in split_entries(rows, data)} == {"a": "train", "b": "train", "c": "val"}
    with pytest.raises(DataError, match="group g is in more than one split"):
        split_entries([*rows, Entry("d", "x", "g", "val")], data)


def test_unlabelled_and_noisy_clips_are_never_validated_on() -> None:
    data = Csv(kind="csv", path="x", folds=2, test_folds=0)
    rows = [Entry(f"{i}", "x" if i % 3 else "", f"g{i}", trusted=i % 2 == 0) for i in range(40)]
    assert all(e.label and e.trusted for e in split_entries(rows, data) if e.split != "train")


# ---------------------------------------------------------------- official layouts


def lay_ucf101(root: Path, lists: Path) -> None:
    """The official lists, and a file of a byte for each video that they name."""
    (root / "ucf101" / "ucfTrainTestlist").mkdir(parents=True)
    named: set[str] = set()
    for path in lists.glob("*.txt"):
        (root / "ucf101" / "ucfTrainTestlist" / path.name).write_bytes(path.read_bytes())
        if path.name != "classInd.txt":
            named |= {line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()}
    for name in named:
        video = root / "ucf101" / "UCF-101" / name
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(b"x")


@pytest.mark.parametrize(
    ("split", "train", "test"),
    [
        (1, 9537, 3783),
        pytest.param(2, 9586, 3734, marks=pytest.mark.slow),
        pytest.param(3, 9624, 3696, marks=pytest.mark.slow),
    ],
)
def test_ucf101_official_splits(tmp_path: Path, clips: Path, split: int, train: int, test: int) -> None:
    lay_ucf101(tmp_path, clips / "splits" / "ucf101")
    data = Ucf101(kind="ucf101", split=split)
    listed = list_clips(data, tmp_path)
    assert len(listed.classes) == 101 and listed.classes[:2] == ("ApplyEyeMakeup", "ApplyLipstick")
    assert listed.unlisted == () and all((listed.root / e.path).is_file() for e in listed.entries)
    placed = split_entries(listed.entries, data)
    counts = Counter(e.split for e in placed)
    assert (counts["train"] + counts["val"], counts["test"]) == (train, test)
    assert 0.15 < counts["val"] / train < 0.25
    assert_no_group_is_shared(placed)
    assert {e.label for e in placed if e.split == "val"} == set(listed.classes)
    folds = [split_entries(listed.entries, data.model_copy(update={"fold": fold})) for fold in range(5)]
    validated = Counter(e.path for placed in folds for e in placed if e.split == "val")
    assert len(validated) == train and set(validated.values()) == {1}


def assert_no_group_is_shared(placed: list[Entry]) -> None:
    groups = {s: {(e.label, e.group) for e in placed if e.split == s} for s in ("train", "val", "test")}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["val"]
    assert not groups["val"] & groups["test"] and all(groups.values())


@pytest.mark.slow
def test_ucf101_spelling_and_strangers(tmp_path: Path, clips: Path) -> None:
    lay_ucf101(tmp_path, clips / "splits" / "ucf101")
    folder = tmp_path / "ucf101" / "UCF-101" / "HandstandPushups"
    assert (folder / "v_HandStandPushups_g01_c01.avi").is_file()
    for video in folder.iterdir():
        video.rename(folder / video.name.replace("HandStand", "Handstand"))  # as some copies have it
    (folder / "v_new_g01_c01.avi").write_bytes(b"x")
    listed = list_clips(Ucf101(kind="ucf101"), tmp_path)
    assert all((listed.root / e.path).is_file() for e in listed.entries)
    assert listed.unlisted == ("UCF-101/HandstandPushups/v_new_g01_c01.avi",)


@pytest.mark.slow
def test_one_lock_entry_serves_all_splits_of_ucf101(tmp_path: Path, clips: Path) -> None:
    lay_ucf101(tmp_path, clips / "splits" / "ucf101")
    memo = HashMemo(tmp_path / "memo.json")
    marks = {fingerprint(Ucf101(kind="ucf101", split=s), tmp_path, memo).fingerprint for s in (1, 2, 3)}
    assert len(marks) == 1


def lay_hmdb51(root: Path, lists: Path) -> None:
    (root / "hmdb51" / "testTrainMulti_7030_splits").mkdir(parents=True)
    for path in lists.glob("*.txt"):
        (root / "hmdb51" / "testTrainMulti_7030_splits" / path.name).write_bytes(path.read_bytes())
        folder = root / "hmdb51" / path.name.partition("_test_split")[0]
        folder.mkdir()
        for line in path.read_text("utf-8").splitlines():
            if line.strip():
                (folder / line.split()[0]).write_bytes(b"x")


def test_hmdb51_official_split(tmp_path: Path, clips: Path) -> None:
    lay_hmdb51(tmp_path, clips / "splits" / "hmdb51")
    data = Hmdb51(kind="hmdb51")
    listed = list_clips(data, tmp_path)
    assert len(listed.classes) == 51 and len(listed.entries) == 6766 and listed.unlisted == ()
    placed = split_entries(listed.entries, data)
    counts = Counter(e.split for e in placed)
    assert (counts["train"] + counts["val"], counts["test"]) == (3570, 1530)
    assert_no_group_is_shared(placed)
    with pytest.raises(UsageError, match="does not exist"):
        list_clips(Hmdb51(kind="hmdb51", split=2), tmp_path)


def test_kinetics_folders_and_lists_give_the_same(tmp_path: Path) -> None:
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for part, ids in (("train", "abcdef"), ("val", "xy")):
        for i, name in enumerate(ids):
            label = ("air drumming", "zumba")[i % 2]
            for start in (3, 13)[: 1 + (name == "a")]:
                video = tmp_path / "k" / part / label / f"{name}_{start:06d}_{start + 10:06d}.mp4"
                video.parent.mkdir(parents=True, exist_ok=True)
                video.write_bytes(b"x")
                rows[part].append(f"{label},{name},{start},{start + 10},{part}")
    (tmp_path / "k" / "annotations").mkdir()
    for part, lines in rows.items():
        head = "label,youtube_id,time_start,time_end,split\n"
        (tmp_path / "k" / "annotations" / f"{part}.csv").write_text(head + "\n".join(lines) + "\n", "utf-8")
    folders = list_clips(Kinetics(kind="kinetics", path="k"), tmp_path)
    tables = list_clips(Kinetics(kind="kinetics", path="k", lists="csv"), tmp_path)
    assert set(folders.entries) == set(tables.entries) and folders.classes == ("air drumming", "zumba")
    placed = split_entries(folders.entries, Kinetics(kind="kinetics", path="k", folds=3))
    assert_no_group_is_shared(placed)
    assert {e.group for e in placed if e.split == "test"} == {"x", "y"}
    shared = tmp_path / "k" / "train" / "zumba" / "x_000050_000060.mp4"
    shared.write_bytes(b"x")  # another part of a source video of the test split
    again = split_entries(list_clips(Kinetics(kind="kinetics", path="k"), tmp_path).entries, Kinetics(kind="kinetics"))
    assert len(again) == len(placed) and shared.name not in {Path(e.path).name for e in again}
    with (tmp_path / "k" / "annotations" / "val.csv").open("a") as stream:
        stream.write("zumba,gone,abc,20,val\n")
    with pytest.raises(DataError, match=r"val\.csv:4: time_start"):
        list_clips(Kinetics(kind="kinetics", path="k", lists="csv"), tmp_path)


@pytest.mark.parametrize(
    "data",
    [Ucf101(kind="ucf101"), Hmdb51(kind="hmdb51"), Kinetics(kind="kinetics"), Kinetics(kind="kinetics", lists="csv")],
)
def test_a_missing_layout_says_what_belongs_where(tmp_path: Path, data: Videos) -> None:
    with pytest.raises(UsageError) as caught:
        list_clips(data, tmp_path)
    assert str(tmp_path) in caught.value.message and "data" in caught.value.hint


def test_a_wrong_official_list_is_refused_with_its_line(tmp_path: Path, clips: Path) -> None:
    lay_ucf101(tmp_path, clips / "splits" / "ucf101")
    path = tmp_path / "ucf101" / "ucfTrainTestlist" / "testlist01.txt"
    path.write_text("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nNoClass/x.avi\n", "utf-8")
    with pytest.raises(DataError, match=r"testlist01\.txt:2: 'NoClass/x\.avi'"):
        list_clips(Ucf101(kind="ucf101"), tmp_path)


# ---------------------------------------------------------------- fingerprints and draws


def test_touching_changes_no_fingerprint_and_content_does(tmp_path: Path) -> None:
    write_video(tmp_path / "run" / "a.avi")
    write_video(tmp_path / "walk" / "b.avi")
    data, memo = Folder(kind="folder"), HashMemo(tmp_path / "memo.json")
    first = fingerprint(data, tmp_path, memo)
    (tmp_path / "run" / "a.avi").touch()
    assert fingerprint(data, tmp_path, HashMemo(tmp_path / "memo.json")) == first
    (tmp_path / "memo.json").write_text("{broken", "utf-8")
    assert fingerprint(data, tmp_path, HashMemo(tmp_path / "memo.json")) == first
    with (tmp_path / "run" / "a.avi").open("ab") as stream:
        stream.write(b"1")
    assert fingerprint(data, tmp_path, HashMemo(tmp_path / "memo.json")).fingerprint != first.fingerprint


def test_a_flipped_bit_in_the_memo_costs_only_time(tmp_path: Path) -> None:
    write_video(tmp_path / "run" / "a.avi")
    memo, path = tmp_path / "memo.json", tmp_path / "run" / "a.avi"
    kept = HashMemo(memo)
    sha256 = kept.sha256(path)[1]
    kept.save()
    assert HashMemo(memo).known and damaged_memo(memo) == []
    text = memo.read_text("utf-8")
    memo.write_text(text.replace(sha256[:4], "0000"), "utf-8")
    assert HashMemo(memo).known == {} and HashMemo(memo).sha256(path)[1] == sha256
    assert damaged_memo(memo) == [f"{memo} was changed after it was written: its digest differs"]
    memo.write_text(json.dumps({str(path): ["mark", sha256]}), "utf-8")  # of an earlier version
    assert HashMemo(memo).known == {} and damaged_memo(memo) == []


def test_draws_are_pinned_and_uniform() -> None:
    assert [round(float(x), 6) for x in uniform(1, 2, np.arange(3))] == DRAWS
    many = uniform(5, np.arange(20_000))
    assert abs(many.mean() - 0.5) < 0.01 and np.histogram(many, 10, (0, 1))[0].min() > 1850
    assert sorted(permutation(50, 1, 2).tolist()) == list(range(50))


DRAWS = [0.900611, 0.050814, 0.545963]


# ---------------------------------------------------------------- weak labels


def names(count: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(count))


@settings(max_examples=60)
@given(st.integers(2, 8), st.integers(0, 99), st.floats(0, 0.6), st.floats(0, 0.4))
def test_shares_hold_in_every_class(classes: int, seed: int, clean: float, noisy: float) -> None:
    true = np.repeat(np.arange(classes), 25)
    labels = Labels(clean=clean, noisy=noisy, noise=Symmetric(kind="symmetric", rate=0.5), seed=seed)
    given_, origin = weaken(Clips(true, np.ones(len(true), np.bool_), []), labels, names(classes))
    for label in range(classes):
        kinds = Counter(origin[i] for i in np.flatnonzero(true == label))
        assert kinds["clean"] == max(round(clean * 25), 1 if clean > 0 else 0)
        assert abs(kinds["noisy"] - noisy * 25) <= 1
    assert all(given_[i] == true[i] for i, kind in enumerate(origin) if kind == "clean")
    assert all((given_[i] == -1) == (kind == "none") for i, kind in enumerate(origin))


def test_symmetric_noise_flips_at_its_rate_and_evenly() -> None:
    true = np.repeat(np.arange(5), 2000)
    labels = Labels(clean=0.0, noisy=1.0, noise=Symmetric(kind="symmetric", rate=0.4))
    found, _ = weaken(Clips(true, np.ones(len(true), np.bool_), []), labels, names(5))
    flipped = found != true
    assert abs(flipped.mean() - 0.4) < 0.02
    steps = np.bincount((found - true)[flipped] % 5, minlength=5)
    assert steps[0] == 0 and steps[1:].min() > 850


def test_real_noisy_labels_stay_as_they_are_and_missing_ones_missing() -> None:
    true, trusted = np.array([0, 1, -1, 1]), np.array([True, False, True, True])
    found, origin = weaken(Clips(true, trusted, []), Labels(clean=1.0), names(2))
    assert found.tolist() == [0, 1, -1, 1] and origin == ["clean", "noisy", "none", "clean"]


def noisy(kind: object, count: int = 5, looks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    true = np.repeat(np.arange(count), 2000)
    labels = Labels.model_validate({"clean": 0.0, "noisy": 1.0, "noise": kind})
    return true, weaken(Clips(true, np.ones(len(true), np.bool_), [], looks), labels, names(count))[0]


def test_pair_flips_go_to_the_next_class() -> None:
    true, found = noisy(PairFlip(kind="pair_flip", rate=0.3))
    assert set(((found - true) % 5).tolist()) == {0, 1} and abs((found != true).mean() - 0.3) < 0.02


def test_asymmetric_noise_follows_its_confusions() -> None:
    true, found = noisy(Asymmetric(kind="asymmetric", rate=0.4, confusions={"c0": "c3", "c3": "c1"}))
    assert all((found[true == c] == c).all() for c in (1, 2, 4))
    for source, target in ((0, 3), (3, 1)):
        assert set(found[true == source].tolist()) == {source, target}
        assert abs((found[true == source] == target).mean() - 0.4) < 0.04
    with pytest.raises(DataError, match="names 'dog', which is not a class"):
        noisy(Asymmetric(kind="asymmetric", rate=0.4, confusions={"c0": "dog"}))


def test_instance_noise_depends_on_looks_and_keeps_its_rate() -> None:
    """Clips that look alike go wrong alike: the wrong class is much less even than by chance."""
    dice = np.random.default_rng(0)
    kinds = dice.integers(0, 2, 10_000)
    looks = np.where(kinds[:, None] == 0, 1.0, -1.0) * np.ones((1, 16)) + 0.1 * dice.normal(size=(10_000, 16))
    true, found = noisy(InstanceDependent(kind="instance", rate=0.4), looks=looks)
    wrong = found != true
    assert abs(wrong.mean() - 0.4) < 0.02
    for kind in (0, 1):
        steps = np.bincount((found - true)[wrong & (kinds == kind) & (true == 2)] % 5, minlength=5)
        assert steps[0] == 0 and steps.max() > 3 * steps[1:].min()


@settings(max_examples=40)
@given(st.integers(0, 99), st.floats(0.1, 0.6), st.floats(0, 0.4))
def test_labels_by_group_keep_groups_whole_and_shares_near(seed: int, clean: float, noise: float) -> None:
    groups = [f"g{g}" for g in range(12) for _ in range(5) for _ in range(3)]
    true = np.array([c for _ in range(12) for _ in range(5) for c in range(3)])
    labels = Labels.model_validate(
        {"clean": clean, "noisy": noise, "noise": Symmetric(kind="symmetric", rate=0.5), "by": "group", "seed": seed}
    )
    _, origin = weaken(Clips(true, np.ones(len(true), np.bool_), groups), labels, names(3))
    kinds = {group: {origin[i] for i in range(len(true)) if groups[i] == group} for group in set(groups)}
    assert all(len(kind) == 1 for kind in kinds.values())
    assert abs(origin.count("clean") / len(true) - clean) <= 0.09


def test_labels_that_come_noisy_get_no_more_noise() -> None:
    true = np.zeros(100, np.int64)
    labels = Labels(clean=0.0, noisy=1.0, noise=Symmetric(kind="symmetric", rate=1.0))
    found, origin = weaken(Clips(true, np.zeros(100, np.bool_), []), labels, names(3))
    assert (found == 0).all() and set(origin) == {"noisy"}
