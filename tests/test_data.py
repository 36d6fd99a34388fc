"""Data: indices, splits without leaks, decoding by count, bad files, the clip cache, views, simulated clips, labels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd.data.cache import open_cache
from stagedkd.data.decode import decode
from stagedkd.data.draws import permutation, uniform
from stagedkd.data.fingerprint import HashMemo, fingerprint
from stagedkd.data.index import Entry, list_clips, split_entries
from stagedkd.data.labels import weaken
from stagedkd.data.simulate import shapes
from stagedkd.data.views import apply_view, eval_views, frame_numbers, train_view
from stagedkd.errors import DataError, UsageError
from stagedkd.spec.schema import Augment, Clip, Csv, Folder, Labels, Shapes, Symmetric

CPU = torch.device("cpu")


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (40, 32), noisy: bool = False) -> None:
    """A video whose frame number can be read from its brightness, or one of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), (20 + 10 * number) % 250, np.uint8)
            if noisy:
                picture = np.random.default_rng(number).integers(0, 255, picture.shape, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


# ---------------------------------------------------------------- index and splits


def test_folder_and_csv_give_the_same_clips(tmp_path: Path) -> None:
    for name in ("run/a.avi", "run/b.MP4", "walk/c.avi", "walk/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "clips.csv").write_text("path,label\nwalk/c.avi,walk\nrun/a.avi,run\nrun/b.MP4,run\n", "utf-8")
    _, folder = list_clips(Folder(kind="folder"), tmp_path)
    _, table = list_clips(Csv(kind="csv", path="clips.csv"), tmp_path)
    assert folder == table and [e.path for e in folder] == ["run/a.avi", "run/b.MP4", "walk/c.avi"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path\na.avi\n", "columns path and label are needed"),
        ("path,label,colour\na.avi,x,red\n", "unknown column 'colour'"),
        ("path,label\n", "lists no clips"),
        ("path,label\na.avi,x\na.avi,x\n", "a.avi stands 2 times"),
        ("path,label,split\na.avi,x,training\n", "clips.csv:2: split 'training'"),
        ("path,label,clean\na.avi,x,yes\n", "clips.csv:2: clean is 0 or 1"),
        ("path,label,split\na.avi,,val\n", "clips.csv:2: a val clip needs a label"),
        ("path,label\n,x\n", "clips.csv:2: no path"),
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
    st.integers(0, 999), st.integers(0, 3), st.integers(0, 15),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
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
        _, entries = list_clips(data, clips)
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


# ---------------------------------------------------------------- decoding


def test_frames_are_counted_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 12)
    found = decode(tmp_path / "a.avi", 16)
    assert found.fault == "" and found.frames_THWC.shape == (12, 16, 20, 3)
    brightness = found.frames_THWC.mean((1, 2, 3))
    assert np.allclose(brightness, 20 + 10 * np.arange(12), atol=4)


def test_packed_b_frames_decode_in_sequence(clips: Path) -> None:
    """The format of UCF101: every frame once, none repeated, as many as the container's packets promise."""
    path = clips / "odd" / "ucf101_packed_bframes.avi"
    found = decode(path, 64)
    with av.open(str(path)) as container:
        plain = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert found.fault == "" and len(found.frames_THWC) == len(plain)


def test_rotation_is_applied(clips: Path) -> None:
    upright = decode(clips / "odd" / "nasa_13013.mp4", 32).frames_THWC
    turned = decode(clips / "odd" / "nasa_13013_rotated.mp4", 32).frames_THWC
    assert upright.shape[1] < upright.shape[2] and turned.shape[1] > turned.shape[2]
    same = np.abs(np.rot90(upright[0], 1).astype(int) - turned[0]).mean()
    other = np.abs(np.rot90(upright[0], 3).astype(int) - turned[0]).mean()
    assert same < 1 < 5 < other  # the direction that ffmpeg turns it, too (mean difference 1.7 against 10.3)


def bad_files(folder: Path) -> dict[str, str]:
    """Kinds of bad files, and a word of the reason each must be listed with."""
    write_video(folder / "good.avi", 40, noisy=True)
    good = (folder / "good.avi").read_bytes()
    (folder / "zero.avi").write_bytes(b"")
    (folder / "garbage.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "page.mp4").write_text("<html>not found</html>", "utf-8")
    (folder / "cut.avi").write_bytes(good[: len(good) // 3])
    (folder / "header.avi").write_bytes(good[:200])
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return {
        "zero.avi": "zero bytes", "garbage.avi": "cannot be decoded", "page.mp4": "cannot be decoded", "cut.avi": "cut",
        "header.avi": "", "sound.mp4": "no video stream", "none.avi": "missing",
    }  # fmt: skip


def test_bad_files_are_named_and_never_raise(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        found = decode(tmp_path / name, 16)
        assert found.fault and reason in found.fault, name
    assert decode(tmp_path / "good.avi", 16).fault == ""


def test_flipped_bits_never_crash(tmp_path: Path, clips: Path) -> None:
    original = (clips / "weizmann" / "walk" / "daria_walk.avi").read_bytes()
    dice = np.random.default_rng(7)
    for i in range(25):
        broken = bytearray(original)
        for place in dice.integers(0, len(broken), 30):
            broken[place] ^= 1 << int(dice.integers(8))
        path = tmp_path / f"{i}.avi"
        path.write_bytes(broken)
        assert decode(path, 16).frames_THWC.dtype == np.uint8


# ---------------------------------------------------------------- the clip cache


def test_the_cache_holds_the_decoded_frames_for_any_number_of_workers(tmp_path: Path) -> None:
    for i in range(5):
        write_video(tmp_path / "v" / f"{i}.avi", 6 + i, (40 + 8 * i, 32))
    files = {f"{i}.avi": f"mark{i}" for i in range(5)}
    steps: list[tuple[int, int]] = []
    one = open_cache(tmp_path / "one", tmp_path / "v", files, 16, 1, lambda *at: steps.append(at))
    four = open_cache(tmp_path / "four", tmp_path / "v", files, 16, 4, lambda *_: None)
    assert steps[-1] == (5, 5)
    for name in files:
        fresh = decode(tmp_path / "v" / name, 16).frames_THWC
        assert np.array_equal(one.frames(name), fresh) and np.array_equal(four.frames(name), fresh)
    (folder,) = (p for p in (tmp_path / "one").iterdir() if p.is_dir())
    before = (folder / "clips.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "v")
    open_cache(tmp_path / "one", tmp_path / "v", files, 16, 1, lambda *_: None)  # no videos needed any more
    assert (folder / "clips.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="no folder"):
        open_cache(tmp_path / "one", tmp_path / "v", files, 24, 1, lambda *_: None)


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


# ---------------------------------------------------------------- views


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(8, 64),
    st.integers(8, 64),
    st.integers(0, 99),
)
def test_views_stay_inside_the_clip(frames: int, stride: int, length: int, height: int, width: int, index: int) -> None:
    clip, augment = Clip(frames=frames, stride=stride, size=8), Augment(crop=0.3, flip=0.5)
    for view in (
        train_view(clip, augment, 1, 2, index, length, height, width),
        *eval_views(clip, 3, 3, length, height, width),
    ):
        top, left, tall, wide = view.box
        assert top >= 0 and top + tall <= height and left >= 0 and left + wide <= width and tall > 0 and wide > 0
        assert len(view.frames) == frames and view.frames.min() >= 0 and view.frames.max() < length


def test_a_view_is_a_function_of_seed_epoch_and_index() -> None:
    clip, augment = Clip(frames=4, size=8), Augment(flip=0.5)
    at = [(s, e, i) for s in range(2) for e in range(3) for i in range(40)]
    first = [train_view(clip, augment, s, e, i, 30, 20, 24) for s, e, i in at]
    again = [train_view(clip, augment, s, e, i, 30, 20, 24) for s, e, i in reversed(at)][::-1]
    assert all(
        a.box == b.box and a.flip == b.flip and (a.frames == b.frames).all() for a, b in zip(first, again, strict=True)
    )
    assert len({(v.box, v.flip, int(v.frames[0])) for v in first}) > 100
    assert 0.35 < np.mean([v.flip for v in first]) < 0.65


def test_short_clips_loop_or_stay() -> None:
    assert frame_numbers(Clip(frames=5, size=8), 1, 3).tolist() == [1, 2, 0, 1, 2]
    assert frame_numbers(Clip(frames=5, size=8, short="pad"), 1, 3).tolist() == [1, 2, 2, 2, 2]


def test_a_view_crops_and_mirrors() -> None:
    picture = torch.arange(4 * 6, dtype=torch.uint8).view(1, 1, 4, 6).expand(2, 3, 4, 6)
    (view,) = eval_views(Clip(frames=2, size=8), 1, 1, 2, 4, 6)
    assert view.box == (0, 1, 4, 4)
    plain = apply_view(picture, view, 4)
    assert plain.shape == (3, 2, 4, 4) and torch.allclose(plain[0, 0], picture[0, 0, :, 1:5].float() / 255)
    flipped = apply_view(picture, type(view)(view.frames, view.box, flip=True), 4)
    assert torch.equal(flipped, plain.flip(-1))


# ---------------------------------------------------------------- simulated clips


def test_simulated_clips_do_not_depend_on_batch_or_order() -> None:
    data = Shapes(kind="shapes", classes=12, distractors=2)
    numbers = np.arange(24)
    whole = shapes.render(numbers, data, 6, 16, CPU)
    assert whole.shape == (24, 3, 6, 16, 16) and whole.dtype == torch.uint8
    order = permutation(24, 3)
    assert torch.equal(shapes.render(order, data, 6, 16, CPU), whole[torch.from_numpy(order)])
    assert torch.equal(shapes.render(numbers[7:8], data, 6, 16, CPU)[0], whole[7])
    assert len({clip.numpy().tobytes() for clip in whole}) == 24


def test_a_class_reversed_in_time_is_its_pair() -> None:
    """The same draws with the label of the pair, played backwards, are the same pictures."""
    for number in range(0, 12, 2):
        one = Shapes(kind="shapes", classes=12, noise=0.0)
        a = shapes._course(np.array([number]), one, 9, 0)
        labels = shapes.label_of
        try:
            shapes.label_of = lambda index, data: labels(index, data) + 1  # the pair's label, equal draws
            b = shapes._course(np.array([number]), one, 9, 0)
        finally:
            shapes.label_of = labels
        for forward, backward in zip(a[:4], b[:4], strict=True):
            np.testing.assert_allclose(forward, backward[:, ::-1], atol=1e-12)
        assert (
            not np.allclose(a[0], b[0])
            or not np.allclose(a[1], b[1])
            or not np.allclose(a[2], b[2])
            or not np.allclose(a[3], b[3])
        )


def test_one_frame_tells_nothing_about_the_class() -> None:
    """A nearest-mean and a linear classifier on the middle frame stay near chance; labels are balanced."""
    data = Shapes(kind="shapes", classes=8)
    numbers = np.arange(1600)
    labels = shapes.label_of(numbers, data)
    assert set(Counter(labels.tolist()).values()) == {200}
    frame = shapes.render(numbers, data, 8, 12, CPU)[:, :, 4].float().mean(1).flatten(1)
    frame = (frame - frame.mean(0)) / frame.std(0)
    target = torch.nn.functional.one_hot(torch.from_numpy(labels)).float()
    weights = torch.linalg.solve(frame[:1200].T @ frame[:1200] + 100 * torch.eye(144), frame[:1200].T @ target[:1200])
    right = ((frame[1200:] @ weights).argmax(1).numpy() == labels[1200:]).mean()
    assert right < 0.125 + 0.06


def test_pinned_pixels() -> None:
    """Golden: a simulated set is named by its settings alone, so its pixels never change without a new version."""
    clip = shapes.render(np.arange(4), Shapes(kind="shapes"), 4, 12, CPU)
    assert int(clip.sum()) == PIXELS


PIXELS = 429303


def test_draws_are_pinned_and_uniform() -> None:
    assert [round(float(x), 6) for x in uniform(1, 2, np.arange(3))] == DRAWS
    many = uniform(5, np.arange(20_000))
    assert abs(many.mean() - 0.5) < 0.01 and np.histogram(many, 10, (0, 1))[0].min() > 1850
    assert sorted(permutation(50, 1, 2).tolist()) == list(range(50))


DRAWS = [0.900611, 0.050814, 0.545963]


# ---------------------------------------------------------------- weak labels


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(0, 99), st.floats(0, 0.6), st.floats(0, 0.4))
def test_shares_hold_in_every_class(classes: int, seed: int, clean: float, noisy: float) -> None:
    true = np.repeat(np.arange(classes), 25)
    labels = Labels(clean=clean, noisy=noisy, noise=Symmetric(kind="symmetric", rate=0.5), seed=seed)
    given_, origin = weaken(true, np.ones(len(true), np.bool_), labels, classes)
    for label in range(classes):
        kinds = Counter(origin[i] for i in np.flatnonzero(true == label))
        assert kinds["clean"] == max(round(clean * 25), 1 if clean > 0 else 0)
        assert abs(kinds["noisy"] - noisy * 25) <= 1
    assert all(given_[i] == true[i] for i, kind in enumerate(origin) if kind == "clean")
    assert all((given_[i] == -1) == (kind == "none") for i, kind in enumerate(origin))


def test_symmetric_noise_flips_at_its_rate_and_evenly() -> None:
    true = np.repeat(np.arange(5), 2000)
    labels = Labels(clean=0.0, noisy=1.0, noise=Symmetric(kind="symmetric", rate=0.4))
    found, _ = weaken(true, np.ones(len(true), np.bool_), labels, 5)
    flipped = found != true
    assert abs(flipped.mean() - 0.4) < 0.02
    steps = np.bincount((found - true)[flipped] % 5, minlength=5)
    assert steps[0] == 0 and steps[1:].min() > 850


def test_real_noisy_labels_stay_as_they_are_and_missing_ones_missing() -> None:
    true, trusted = np.array([0, 1, -1, 1]), np.array([True, False, True, True])
    found, origin = weaken(true, trusted, Labels(clean=1.0), 2)
    assert found.tolist() == [0, 1, -1, 1] and origin == ["clean", "noisy", "none", "clean"]
