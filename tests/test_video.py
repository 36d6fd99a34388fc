"""Real videos: decoding by count against FFmpeg's own, bad files, the clip cache, views, sources."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from stagedkd.data import cache as cache_module
from stagedkd.data import cache_build as caches
from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec, ClipCache
from stagedkd.data.cache_build import open_cache
from stagedkd.data.decode import Footage, decode, inspect, iter_frames, pixels, probe
from stagedkd.data.mix import Batch, mix
from stagedkd.data.shard import Form, StoredClip
from stagedkd.data.source import VideoClips, VideoFiles
from stagedkd.data.views import Video, View, apply_view, eval_views, fit_input, train_view
from stagedkd.errors import DataError, LockError, StoreError, UsageError
from stagedkd.files import read_record
from stagedkd.spec.schema import Augment, Clip, Input
from tests.tools import marks
from tests.videos import bad_files, write_video

CPU = torch.device("cpu")


def opened(cache: Path, spec: CacheSpec, workers: int = 1) -> ClipCache:
    return open_cache(cache, spec, workers, lambda *_: None, lambda _: None)


def spec_of(root: Path, side: int = 16, form: Form = "raw") -> CacheSpec:
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.avi"))
    return CacheSpec(root, marks(root, files), side, form)


# ---------------------------------------------------------------- decoding


def test_frames_are_counted_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 12)
    found = decode(Address(tmp_path / "a.avi"), 16)
    assert found.fault == "" and found.frames_THWC.shape == (12, 16, 20, 3)
    assert np.allclose(found.frames_THWC.mean((1, 2, 3)), 20 + 10 * np.arange(12), atol=4)
    assert found.footage.times == pytest.approx([i / 10 for i in range(12)])
    assert inspect(Address(tmp_path / "a.avi")) == found.footage and probe(Address(tmp_path / "a.avi")) == (12, 32, 40)
    some = decode(Address(tmp_path / "a.avi"), 16, {3, 7})
    assert np.array_equal(some.frames_THWC, found.frames_THWC[[3, 7]])


def ffmpeg(*arguments: str) -> bytes:
    """FFmpeg's own decode; not PyAV's build of it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here: install it")
    command = ["ffmpeg", "-v", "error", "-noautorotate", *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def assert_frames_are_ffmpegs(path: Path) -> int:
    """Luma and chroma of every frame against framemd5, by frame number."""
    rows = ffmpeg("-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framemd5", "-").decode()
    wanted = [row.split(",")[-1].strip() for row in rows.splitlines() if row and not row.startswith("#")]
    found = [hashlib.md5(planes(shown.frame)).hexdigest() for shown in iter_frames(Address(path))]
    assert found == wanted, path
    return len(found)


def planes(frame: VideoFrame) -> bytes:
    return frame.to_ndarray(format="yuv420p").tobytes()


def test_packed_b_frames_are_ffmpegs_frame_by_frame(clips: Path) -> None:
    """The format of UCF101, in which seeking by time returns other frames."""
    assert assert_frames_are_ffmpegs(clips / "odd" / "ucf101_packed_bframes.avi") == 164


@pytest.mark.slow
def test_all_weizmann_clips_are_ffmpegs_frame_by_frame(clips: Path) -> None:
    counts = [assert_frames_are_ffmpegs(path) for path in sorted((clips / "weizmann").rglob("*.avi"))]
    assert len(counts) == 90 and sum(counts) > 5000


def reference(path: Path, side: int) -> np.ndarray:
    """All frames with FFmpeg's own luma and chroma put into them, scaled as ours are: uint8 (T, H, W, 3)."""
    raw = ffmpeg(
        "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"
    )
    left, made = memoryview(raw), list[np.ndarray]()
    for shown in iter_frames(Address(path)):  # for what the pixels mean: colour space, place of the chroma
        theirs = shown.frame.reformat(format="yuv420p")
        for plane in theirs.planes:
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            rows[:, : plane.width] = np.frombuffer(left[: plane.height * plane.width], np.uint8).reshape(
                plane.height, -1
            )
            plane.update(rows.tobytes())
            left = left[plane.height * plane.width :]
        made.append(pixels(replace(shown, frame=theirs), side))
    assert not left
    return np.stack(made)


def assert_sampled_frames_are_ffmpegs(
    root: Path, paths: list[str], tmp_path: Path, rounds: int, side: int = 48
) -> None:
    """What reaches the device, from the cache and from the files alike, in random and in fixed views."""
    spec = CacheSpec(root, marks(root, paths), side)
    cache = opened(tmp_path / "cache", spec, 2)
    seen = (
        Clip(frames=8, stride=2, size=32, resize=side),
        Clip(frames=8, sampler="segments", size=32, resize=side),
    )
    for number, path in enumerate(paths):
        whole = reference(root / path, side)
        assert cache.clip(path).frames == len(whole)
        video = Video(len(whole), *whole.shape[1:3])
        views = [train_view(clip, Augment(), 1, epoch, number, video) for clip in seen for epoch in range(rounds)]
        for view in [*views, *(view for clip in seen for view in eval_views(clip, rounds, 1, video))]:
            for reader in (cache, VideoFiles(root, side)):
                assert np.array_equal(reader.frames(path, view.frames), whole[view.frames]), path


def test_sampled_frames_are_ffmpegs(tmp_path: Path, clips: Path) -> None:
    paths = ["odd/ucf101_packed_bframes.avi", "weizmann/run/ido_run.avi", "weizmann/jack/daria_jack.avi"]
    assert_sampled_frames_are_ffmpegs(clips, paths, tmp_path, 3)


@pytest.mark.slow
def test_sampled_frames_of_all_weizmann_clips_are_ffmpegs(tmp_path: Path, clips: Path) -> None:
    paths = sorted(p.relative_to(clips).as_posix() for p in (clips / "weizmann").rglob("*.avi"))
    assert_sampled_frames_are_ffmpegs(clips, paths, tmp_path, 1)


@pytest.mark.parametrize(
    ("name", "frames", "height", "width"),
    [
        ("av1_video.mkv", 125, 360, 640),
        ("h265_10bits.mp4", 30, 200, 200),
        ("testsrc2_vp9.webm", 30, 720, 1280),
        ("testsrc2_odd_height_and_width_mpeg2.mp4", 10, 81, 121),
        ("test_non_zero_start.mp4", 12, 112, 200),
        ("unordered.mov", 4, 50, 50),
        ("discard_first_keyframe.mp4", 25, 64, 64),
        ("nasa_13013.mp4", 390, 270, 480),
        ("nasa_13013_rotated.mp4", 17, 480, 270),
    ],
)
def test_odd_files_are_read(clips: Path, name: str, frames: int, height: int, width: int) -> None:
    """Rotated ones upright, the best stream of several, frames that the edit list takes out not counted."""
    found = inspect(Address(clips / "odd" / name))
    assert (found.frames, found.height, found.width, found.fault) == (frames, height, width, "")
    assert list(found.times) == sorted(found.times)


def test_frames_before_the_first_error_count(clips: Path) -> None:
    found = inspect(Address(clips / "odd" / "corrupted.mp4"))
    assert found.frames == 28 and found.fault.startswith("cut after 28 frames: ")


def test_rotation_is_applied(clips: Path) -> None:
    upright = decode(Address(clips / "odd" / "nasa_13013.mp4"), 32).frames_THWC
    turned = decode(Address(clips / "odd" / "nasa_13013_rotated.mp4"), 32).frames_THWC
    assert upright.shape[1] < upright.shape[2] and turned.shape[1] > turned.shape[2]
    same = np.abs(np.rot90(upright[0], 1).astype(int) - turned[0]).mean()
    other = np.abs(np.rot90(upright[0], 3).astype(int) - turned[0]).mean()
    assert same < 1 < 5 < other  # the direction that ffmpeg turns it, too (mean difference 1.7 against 10.3)


# ---------------------------------------------------------------- bad files


def test_bad_files_are_named_and_never_raise(tmp_path: Path) -> None:
    kinds = bad_files(tmp_path)
    assert len(kinds) >= 16
    for name, reason in kinds.items():
        found = decode(Address(tmp_path / name), 16)
        assert found.fault and reason in found.fault, (name, found.fault)
        assert found.footage == inspect(Address(tmp_path / name)) and len(probe(Address(tmp_path / name))) == 3
        assert len(found.frames_THWC) == found.footage.frames
    assert decode(Address(tmp_path / "good.avi"), 16).fault == "" == decode(Address(tmp_path / "good.mp4"), 16).fault


def test_foreign_words_in_the_metadata_are_no_fault(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        container.metadata["title"] = "XXXXXXXX"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    blob = (tmp_path / "a.avi").read_bytes()
    assert b"XXXXXXXX" in blob
    (tmp_path / "b.avi").write_bytes(blob.replace(b"XXXXXXXX", b"M\xfcnchen\xff"))  # Latin-1, not UTF-8
    assert (
        inspect(Address(tmp_path / "b.avi")) == inspect(Address(tmp_path / "a.avi"))
        and probe(Address(tmp_path / "b.avi"))[0] == 4
    )


def flipped(clips: Path, folder: Path, count: int) -> list[Path]:
    """Real clips with 1, 10 or 100 bits flipped."""
    originals = sorted((clips / "weizmann").rglob("*.avi"))
    dice = np.random.default_rng(7)
    made: list[Path] = []
    for i in range(count):
        broken = bytearray(originals[i % 90].read_bytes())
        for place in dice.integers(0, len(broken), (1, 10, 100)[i % 3]):
            broken[place] ^= 1 << int(dice.integers(8))
        made.append(folder / f"{i}.avi")
        made[-1].write_bytes(broken)
    return made


def assert_damage_is_listed(paths: list[Path]) -> int:
    """Every file that FFmpeg itself complains of is listed; the others decode to the end."""
    listed = 0
    for path in paths:
        found = inspect(Address(path))
        said = subprocess.run(
            ["ffmpeg", "-v", "error", "-i", str(path), "-f", "null", "-"], capture_output=True, timeout=60, check=False
        )
        assert found.fault or not said.stderr, (path, said.stderr[:200])
        assert len(decode(Address(path), 16).frames_THWC) == found.frames
        listed += bool(found.fault)
    return listed


def test_flipped_bits_are_listed_and_never_crash(tmp_path: Path, clips: Path) -> None:
    assert assert_damage_is_listed(flipped(clips, tmp_path, 15)) >= 9


@pytest.mark.slow
def test_five_hundred_flipped_clips(tmp_path: Path, clips: Path) -> None:
    """With 10 and 100 flips nearly all are listed; one flip often leaves a stream that is sound, and other."""
    assert assert_damage_is_listed(flipped(clips, tmp_path, 500)) >= 330


# ---------------------------------------------------------------- the clip cache


def many(folder: Path, count: int = 5) -> Path:
    for i in range(count):
        write_video(folder / f"{i}.avi", 6 + i, (40 + 8 * (i % 3), 32))
    return folder


def test_the_cache_holds_the_decoded_frames_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_CLIPS", 2)
    spec = spec_of(many(tmp_path / "v"))
    steps: list[tuple[int, int]] = []
    notes: list[str] = []
    one = open_cache(tmp_path / "one", spec, 1, lambda *at: steps.append(at), notes.append)
    four = opened(tmp_path / "four", spec, 4)
    assert steps == [(i + 1, 5) for i in range(5)] and "takes about" in notes[0] and "are free" in notes[0]
    for name in spec.files:
        fresh = decode(Address(tmp_path / "v" / name), 16)
        assert np.array_equal(one.frames(name), fresh.frames_THWC)
        assert np.array_equal(four.frames(name, [3, 0, 3]), fresh.frames_THWC[[3, 0, 3]])
        assert dict(one.footages())[name] == fresh.footage == dict(four.footages())[name]
    files = {p.name: p.read_bytes() for p in (tmp_path / "one" / spec.name).iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "four" / spec.name).iterdir()} and len(files) == 9
    shutil.rmtree(tmp_path / "v")
    opened(tmp_path / "one", spec)  # no videos needed any more
    with pytest.raises(UsageError, match="does not exist"):
        opened(tmp_path / "one", CacheSpec(tmp_path / "v", spec.files, 24))


def test_a_killed_build_goes_on_with_the_shards_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_CLIPS", 2)
    spec = spec_of(many(tmp_path / "v", 6))

    def stop(done: int, _of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "c", spec, 2, stop, lambda _: None)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c" / spec.name).glob("shard-0000[01]*")}
    assert len(kept) == 6
    seen: list[int] = []
    cache = open_cache(tmp_path / "c", spec, 2, lambda done, _of: seen.append(done), lambda _: None)
    assert seen == [5, 6]  # the third shard alone
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c" / spec.name).glob("shard-0000[01]*")}
    assert all(np.array_equal(cache.frames(n), decode(Address(tmp_path / "v" / n), 16).frames_THWC) for n in spec.files)


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    spec = spec_of(many(tmp_path / "v"))
    opened(tmp_path / "c", spec)
    blob = tmp_path / "c" / spec.name / "shard-00000.bin"
    sound = blob.read_bytes()
    broken = bytearray(sound)
    broken[len(broken) // 2] ^= 1
    blob.write_bytes(broken)
    cache = opened(tmp_path / "c", spec)
    with pytest.raises(StoreError, match=r"is damaged at \d\.avi") as caught:
        [cache.frames(name) for name in spec.files]
    assert "remove" in caught.value.hint
    blob.write_bytes(sound[:-3])
    with pytest.raises(StoreError, match="another size"):
        opened(tmp_path / "c", spec)


def test_a_damaged_index_is_built_again_and_said(tmp_path: Path) -> None:
    spec = spec_of(many(tmp_path / "v"))
    before, notes = dict(opened(tmp_path / "c", spec).footages()), list[str]()
    index = tmp_path / "c" / spec.name / "shard-00000.json"
    content, dice = index.read_bytes(), random.Random(0)
    for _ in range(25):
        broken, place = bytearray(content), dice.randrange(8 * len(content))
        broken[place // 8] ^= 1 << place % 8
        index.write_bytes(broken)
        cache = open_cache(tmp_path / "c", spec, 1, lambda *_: None, notes.append)
        assert dict(cache.footages()) == before
    assert index.read_bytes() == content and any(f"index {index} was changed" in note for note in notes)
    values, _ = read_record(content)
    del values["times"]
    index.write_text(json.dumps(values), "utf-8")  # of an earlier version
    notes.clear()
    assert dict(open_cache(tmp_path / "c", spec, 1, lambda *_: None, notes.append).footages()) == before and not notes


def test_flipped_times_are_refused(tmp_path: Path) -> None:
    spec = spec_of(many(tmp_path / "v"))
    cache = opened(tmp_path / "c", spec)
    path = tmp_path / "c" / spec.name / "shard-00000.times"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreError, match=r"shard-00000\.times is damaged"):
        list(cache.footages())


def test_a_video_that_is_not_the_locked_one_gets_into_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was changed before it is decoded, or while it is."""
    spec = spec_of(many(tmp_path / "v"))
    store = caches.store_clip

    def changing(address: Address, *rest: Any) -> Any:
        stored = store(address, *rest)
        if address.file.name == "3.avi":
            write_video(address.file, 20)
        return stored

    monkeypatch.setattr(caches, "store_clip", changing)
    for _ in range(2):
        with pytest.raises(LockError, match=r"3\.avi was changed: it differs from stagedkd\.lock"):
            opened(tmp_path / "c", spec)
    assert not list((tmp_path / "c").rglob("*.json"))


def test_a_disk_that_cannot_hold_the_cache_is_said_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(many(tmp_path / "v"))
    wanted = caches.estimate(spec, [0])
    cache = opened(tmp_path / "c", spec)
    assert wanted == pytest.approx(sum(clip.size for clip in map(cache.clip, cache.paths)), rel=0.1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"and .* has 0 MiB left") as caught:
        opened(tmp_path / "d", spec)
    assert "jpeg" in caught.value.hint and not list((tmp_path / "d").rglob("*.bin"))


def test_damaged_places_of_jpegs_are_told_before_they_are_used(tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "a.avi", 40, noisy=True)
    spec = CacheSpec(tmp_path / "v", marks(tmp_path / "v", ["a.avi"]), 32, "jpeg")
    cache = opened(tmp_path / "c", spec)
    clip = cache.clip("a.avi")
    blob = bytearray((cache.folder / clip.file).read_bytes())
    blob[clip.offset + clip.size - 8 * 39] ^= 4  # the place of the second picture
    (cache.folder / clip.file).write_bytes(blob)
    with pytest.raises(StoreError, match=r"is damaged at a\.avi"):
        ClipCache(cache.folder, spec).frames("a.avi", [0])


def test_jpeg_is_near_and_smaller_and_has_a_key_of_its_own(tmp_path: Path, clips: Path) -> None:
    root, path = clips / "weizmann", "run/ido_run.avi"
    raw = CacheSpec(root, marks(root, [path]), 64)
    jpeg = CacheSpec(root, marks(root, [path]), 64, "jpeg")
    one, other = opened(tmp_path / "c", raw), opened(tmp_path / "c", jpeg)
    assert raw.name != jpeg.name and other.clip(path).size < 0.5 * one.clip(path).size
    gap = np.abs(one.frames(path).astype(int) - other.frames(path))
    assert gap.mean() < 3 and other.frames(path, [4, 2]).shape == (2, *one.frames(path).shape[1:])
    assert caches.estimate(jpeg, [0]) < caches.estimate(raw, [0])


def test_bad_files_are_in_the_cache_with_their_reasons(tmp_path: Path) -> None:
    kinds = bad_files(tmp_path / "v")
    spec = CacheSpec(tmp_path / "v", marks(tmp_path / "v", [*kinds, "good.avi"]), 16)
    cache = opened(tmp_path / "c", spec, 3)
    assert all(reason in dict(cache.footages())[name].fault for name, reason in kinds.items())
    assert all(len(cache.frames(name)) == cache.clip(name).frames for name in spec.files)


def test_times_and_all_that_is_known_of_a_clip_come_back_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD_CLIPS", 2)
    clocks: list[list[float]] = [[0.0, 0.1, 0.5, 0.6], [], [0.0, 0.04, 0.08], [0.5], [i / 30 for i in range(300)]]
    known = {f"{i}.avi": Footage(max(1, len(c)), 4, 6, c, "cut" * (i == 3), "note" * i) for i, c in enumerate(clocks)}

    def stored(address: Address, *_: object) -> StoredClip:
        return StoredClip((bytes(range(9)),), 9, 1, 3, (7, 2**32 - 1), known[address.file.name])

    monkeypatch.setattr(caches, "store_clip", stored)
    spec = CacheSpec(tmp_path, marks(tmp_path, known), 16)
    cache = opened(tmp_path / "c", spec)
    assert dict(cache.footages()) == known and list(dict(cache.footages())) == cache.paths
    assert all(list(cache.clip(name).crcs) == [7, 2**32 - 1] for name in known)
    with pytest.raises(KeyError):
        cache.clip("none.avi")
    (tmp_path / "c" / spec.name / "shard-00001.times").write_bytes(b"")
    with pytest.raises(StoreError, match=r"shard-00001\.times has another size"):
        opened(tmp_path / "c", spec)


# ---------------------------------------------------------------- views


CLIPS = st.builds(
    lambda frames, stride, sampler, short, timed: Clip(
        frames=frames,
        stride=stride,
        sampler=sampler,
        short=short,
        size=8,
        sampling="time" if timed else "count",
        rate=12.5 if timed else None,
    ),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from(["dense", "segments"]),
    st.sampled_from(["loop", "pad"]),
    st.booleans(),
)
AUGMENT = Augment(crop=0.3, flip=0.5, tempo=0.3, hue=0.1)


@settings(max_examples=150)
@given(CLIPS, st.integers(1, 60), st.integers(8, 64), st.integers(8, 64), st.integers(0, 99))
def test_views_stay_inside_the_clip(clip: Clip, length: int, height: int, width: int, index: int) -> None:
    times = np.cumsum(np.random.default_rng(index).uniform(0.01, 0.1, length)).tolist()
    video = Video(length, height, width, times)
    for view in (train_view(clip, AUGMENT, 1, 2, index, video), *eval_views(clip, 3, 3, video)):
        top, left, tall, wide = view.box
        assert top >= 0 and top + tall <= height and left >= 0 and left + wide <= width and tall > 0 and wide > 0
        assert len(view.frames) == clip.frames and view.frames.min() >= 0 and view.frames.max() < length


def test_a_view_is_a_function_of_seed_epoch_and_index() -> None:
    clip, video = Clip(frames=4, size=8), Video(30, 20, 24)
    at = [(s, e, i) for s in range(2) for e in range(3) for i in range(40)]
    first = [train_view(clip, AUGMENT, *where, video) for where in at]
    again = [train_view(clip, AUGMENT, *where, video) for where in reversed(at)][::-1]
    same = [(a.box, a.flip, a.hue, a.frames.tolist()) for a in first]
    assert same == [(b.box, b.flip, b.hue, b.frames.tolist()) for b in again]
    assert len({(v.box, v.flip, int(v.frames[0])) for v in first}) > 100
    assert 0.35 < np.mean([v.flip for v in first]) < 0.65


def test_short_clips_loop_or_stay() -> None:
    for short, wanted in (("loop", [0, 1, 2, 0, 1]), ("pad", [0, 1, 2, 2, 2])):
        clip = Clip.model_validate({"frames": 5, "size": 8, "short": short})
        assert eval_views(clip, 1, 1, Video(3, 8, 8))[0].frames.tolist() == wanted


def test_samplers() -> None:
    dense = eval_views(Clip(frames=4, stride=2, size=8), 3, 1, Video(21, 8, 8))
    assert [v.frames.tolist() for v in dense] == [[0, 2, 4, 6], [7, 9, 11, 13], [14, 16, 18, 20]]
    segments = Clip(frames=4, sampler="segments", size=8)
    assert eval_views(segments, 1, 1, Video(20, 8, 8))[0].frames.tolist() == [2, 7, 12, 17]
    drawn = [train_view(segments, Augment(), 0, e, 0, Video(20, 8, 8)).frames for e in range(50)]
    assert all((frames // 5 == np.arange(4)).all() for frames in drawn) and len({tuple(f) for f in drawn}) > 40
    assert len(eval_views(segments, 10, 3, Video(20, 8, 30))) == 30


def test_sampling_by_time_follows_the_clock() -> None:
    """Half of the video at 10 frames a second, half at 40: equal steps in time, not in frames."""
    times = [i / 10 for i in range(10)] + [1 + i / 40 for i in range(40)]
    clip = Clip(frames=5, size=8, sampling="time", rate=2.5)
    (view,) = eval_views(clip, 1, 1, Video(50, 8, 8, times))
    assert np.diff([times[i] for i in view.frames]) == pytest.approx(0.4, abs=0.1)
    counted = eval_views(Clip(frames=5, size=8, stride=10), 1, 1, Video(50, 8, 8, times))[0]
    assert np.ptp(np.diff([times[i] for i in counted.frames])) > 0.4


def test_tempo_changes_the_stride() -> None:
    clip, video = Clip(frames=8, stride=4, size=8), Video(200, 8, 8)
    spans = {int(np.ptp(train_view(clip, Augment(tempo=0.5), 0, e, 0, video).frames)) for e in range(60)}
    assert min(spans) < 18 and max(spans) > 38 and np.ptp(train_view(clip, Augment(), 0, 0, 0, video).frames) == 28


def test_a_view_crops_and_mirrors() -> None:
    picture = torch.arange(4 * 6, dtype=torch.uint8).view(1, 1, 4, 6).expand(2, 3, 4, 6)
    (view,) = eval_views(Clip(frames=2, size=8), 1, 1, Video(2, 4, 6))
    assert view.box == (0, 1, 4, 4)
    plain = apply_view(picture, view, 4)
    assert plain.shape == (3, 2, 4, 4) and torch.allclose(plain[0, 0], picture[0, 0, :, 1:5].float() / 255)
    assert torch.equal(apply_view(picture, View(view.frames, view.box, flip=True), 4), plain.flip(-1))
    coloured = apply_view(picture, View(view.frames, view.box, brightness=1.5), 4)
    assert torch.allclose(coloured, (plain * 1.5).clamp(0, 1))


def test_a_network_makes_its_own_input_of_the_shared_view() -> None:
    clip = torch.rand(2, 3, 8, 16, 16)
    plain = fit_input(clip, Input(normalize="none"))
    assert torch.equal(plain, clip)
    small = fit_input(clip, Input(frames=4, size=8, normalize="none"))
    assert small.shape == (2, 3, 4, 8, 8) and torch.allclose(small[:, :, 1].mean(), clip[:, :, 3].mean(), atol=0.02)
    halves = fit_input(clip, Input(normalize="half"))
    assert torch.allclose(halves, clip * 2 - 1, atol=1e-6)


def test_mixing_is_drawn_by_step_and_shares_add_up() -> None:
    batch = Batch(torch.rand(6, 3, 4, 8, 8), torch.arange(6))
    assert mix(batch, Augment(), 0, 0, 0) is batch
    for fields in ({"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}):
        augment = Augment.model_validate(fields)
        one, again, other = (mix(batch, augment, 5, 2, step) for step in (3, 3, 4))
        assert torch.equal(one.clip_B3THW, again.clip_B3THW) and one.fraction == again.fraction != other.fraction
        assert one.order_B is not None and 0 <= one.fraction <= 1
        partner = batch.clip_B3THW[one.order_B]
        away, towards = (one.clip_B3THW - batch.clip_B3THW).abs().sum(), (partner - batch.clip_B3THW).abs().sum()
        assert float(away) == pytest.approx((1 - one.fraction) * float(towards), rel=0.2, abs=1e-3)
        if "mixup" not in fields:
            taken = (one.clip_B3THW == batch.clip_B3THW) | (one.clip_B3THW == partner)
            assert taken.all()


# ---------------------------------------------------------------- sources


@settings(max_examples=12)
@given(st.permutations(range(6)), st.integers(0, 5), st.sampled_from(["raw", "none"]))
def test_a_clip_gets_the_same_view_in_any_batch(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], epoch: int, kind: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "same_view"
    if not folder.exists():
        many(folder / "v", 6)
    spec = spec_of(folder / "v")
    cache = opened(folder / "c", spec)
    reader = cache if kind == "raw" else VideoFiles(folder / "v", 16)
    paths = sorted(spec.files)
    videos = [Video(len(cache.frames(p)), *cache.frames(p).shape[1:3]) for p in paths]
    source = VideoClips(reader, paths, videos, Clip(frames=4, size=12, resize=16), CPU)
    alone = VideoClips(cache, paths, videos, Clip(frames=4, size=12, resize=16), CPU)

    def made(of: VideoClips, numbers: list[int]) -> torch.Tensor:
        views = [of.train_view(n, AUGMENT, 3, epoch) for n in numbers]
        return of.finish(numbers, views, of.load(numbers, views))

    together = made(source, order)
    assert together.shape == (6, 3, 4, 12, 12) and together.min() >= 0 and together.max() <= 1
    assert all(torch.equal(together[i], made(alone, [n])[0]) for i, n in enumerate(order))


def test_evaluation_reads_each_frame_once(tmp_path: Path) -> None:
    spec = spec_of(many(tmp_path / "v", 1))
    cache, read = opened(tmp_path / "c", spec), list[int]()

    class Counting:
        def frames(self, path: str, frame_indices: object = None) -> np.ndarray:
            read.extend(np.asarray(frame_indices).tolist())
            return cache.frames(path, frame_indices)  # pyright: ignore[reportArgumentType]

    source = VideoClips(Counting(), ["0.avi"], [Video(6, 16, 20)], Clip(frames=4, size=12, resize=16), CPU)
    views = source.views([0], 3, 3)
    assert len(views) == 9 and read == sorted(set(read)) and len(read) <= 6
    wanted = eval_views(source.clip, 3, 3, Video(6, 16, 20))
    frames = torch.from_numpy(cache.frames("0.avi")).permute(0, 3, 1, 2)
    assert all(torch.equal(got[0], apply_view(frames[v.frames], v, 12)) for got, v in zip(views, wanted, strict=True))


def test_a_file_that_shrank_is_said(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 6)
    with pytest.raises(DataError, match=r"a\.avi has changed"):
        VideoFiles(tmp_path, 16).frames("a.avi", [0, 9])
