"""What people bring: mirrored, cut, skipping, jumping and disguised videos, parts of videos, and folders of pictures."""

from __future__ import annotations

import gc
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from stagedkd.data import cache_build as caches
from stagedkd.data import shard
from stagedkd.data.address import Address
from stagedkd.data.cache import CacheSpec
from stagedkd.data.cache_build import differences, open_cache
from stagedkd.data.clock import Clock
from stagedkd.data.decode import decode, inspect, pixels, probe
from stagedkd.data.seek import proven, require_torchcodec
from stagedkd.data.shard import Form, store_clip
from stagedkd.data.source import VideoFiles
from stagedkd.data.upright import Orientation
from stagedkd.data.video import Picture, VideoReader
from stagedkd.data.views import Video, eval_views
from stagedkd.errors import StoreError, UsageError
from stagedkd.plan.work import Reading
from stagedkd.spec.schema import Clip
from stagedkd.stages.prepare import problem_of
from tests.tools import marks
from tests.videos import write_video


def ffmpeg(*arguments: object) -> bytes:
    """The output of FFmpeg's own program, which is not PyAV's build of it."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here: install it")
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def moving(path: Path, *codec: str, frames: int = 50, size: str = "80x60") -> Path:
    """A video in which no two frames are alike."""
    source = f"testsrc2=s={size}:r=25:d={frames / 25}"
    ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", *codec, "-frames:v", frames, path)
    return path


def shown(address: Address | Path, side: int = 60) -> np.ndarray:
    return decode(address if isinstance(address, Address) else Address(address), side).frames_THWC


def held(address: Address | Path) -> tuple[int, str, str]:
    footage = inspect(address if isinstance(address, Address) else Address(address))
    return footage.frames, footage.fault, footage.note


def left_out(count: int) -> str:
    return f"the first {count} pictures are left out, since no key frame comes before"


def cached(folder: Path, root: Path, texts: list[str], side: int = 60) -> dict[str, np.ndarray]:
    spec = CacheSpec(root, marks(root, texts), side)
    cache = open_cache(folder / "cache", spec, 2, lambda *_: None, lambda _: None)
    return {text: cache.frames(text) for text in texts}


# ---------------------------------------------------------------- orientation

MATRICES = {  # a, b, c, d of the display matrix
    "plain": (1, 0, 0, 1),
    "a quarter": (0, 1, -1, 0),
    "half": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def with_matrix(plain: Path, path: Path, matrix: tuple[float, ...]) -> Path:
    """A copy of an MP4 with a display matrix in its track header."""
    blob = plain.read_bytes()
    place = blob.index(b"tkhd") + 4 + 40
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    path.write_bytes(blob[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + blob[place + 36 :])
    return path


@pytest.mark.parametrize("name", MATRICES)
def test_every_orientation_is_ffmpegs(tmp_path: Path, name: str) -> None:
    """`ffmpeg -i` sets pictures upright by itself. Its luma is compared to the bit."""
    path = with_matrix(moving(tmp_path / "a.mp4", frames=4), tmp_path / "b.mp4", MATRICES[name])
    raw = np.frombuffer(ffmpeg("-i", path, "-pix_fmt", "gray", "-f", "rawvideo", "-"), np.uint8)
    found = inspect(Address(path))
    theirs = raw.reshape(4, found.height, found.width)
    for picture, wanted in zip(VideoReader(path).pictures(), theirs, strict=True):
        luma = picture.frame.to_ndarray(format="gray")
        assert np.array_equal(picture.upright.apply(luma[..., None])[..., 0], wanted)
    assert shown(path).shape == (4, found.height, found.width, 3) and found.fault == ""
    assert (found.height, found.width) == ((80, 60) if "quarter" in name or "transposed" in name else (60, 80))


@pytest.mark.parametrize(
    ("matrix", "nearest"),
    [
        ((0.985, 0.174, -0.174, 0.985), Orientation()),
        ((-0.985, 0.174, 0.174, 0.985), Orientation(mirrored=True)),
        ((0.174, 0.985, -0.985, 0.174), Orientation(transposed=True, mirrored=True)),
        ((2, 0, 0, 2), Orientation()),
        ((0, 0, 0, 0), Orientation()),
    ],
)
def test_other_matrices_count_as_the_nearest(tmp_path: Path, matrix: tuple[float, ...], nearest: Orientation) -> None:
    path = with_matrix(moving(tmp_path / "a.mp4", frames=2), tmp_path / "b.mp4", matrix)
    assert [picture.upright for picture in VideoReader(path).pictures()] == [nearest] * 2


def test_an_orientation_in_the_stream_goes_on_and_must_not_change(tmp_path: Path) -> None:
    """H.264 can carry the orientation itself, and only on key frames."""
    plain = moving(tmp_path / "a.h264", "-c:v", "libx264", "-g", "5", "-bf", "0", frames=10)
    turned = tmp_path / "b.h264"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", "h264_metadata=display_orientation=insert:rotate=90", turned)
    assert np.array_equal(shown(turned), np.rot90(shown(plain), 1, (1, 2)))
    both = tmp_path / "c.h264"
    both.write_bytes(plain.read_bytes() + turned.read_bytes())
    assert held(both)[:2] == (10, "cut after 10 frames: the picture changes its orientation")


def test_a_mirrored_video_is_mirrored(clips: Path) -> None:
    plain, mirrored = (shown(clips / "people" / "03_mirrored" / f"{name}.mp4") for name in ("plain", "hflip"))
    assert np.abs(plain.astype(int) - mirrored[:, :, ::-1]).max() <= 2
    assert np.abs(plain.astype(int) - mirrored).mean() > 5


# ---------------------------------------------------------------- cut before the first key frame

CODECS = {
    "mpeg4": ("-c:v", "mpeg4", "-g", "12", "-qscale", "3"),
    "mpeg4 with B-frames": ("-c:v", "mpeg4", "-g", "12", "-bf", "2", "-qscale", "3"),
    "mpeg2": ("-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-qscale", "3"),
    "h264": ("-c:v", "libx264", "-g", "12", "-bf", "2"),
    "h264 with open groups": ("-c:v", "libx264", "-bf", "3", "-x264-params", "open-gop=1:keyint=12:min-keyint=12"),
    "h264 with refresh": ("-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=12"),
    "hevc with open groups": ("-c:v", "libx265", "-x265-params", "keyint=12:min-keyint=12:open-gop=1:log-level=0"),
    "hevc with leading": ("-c:v", "libx265", "-x265-params", "keyint=12:open-gop=0:radl=2:log-level=0"),
    "wmv2": ("-c:v", "wmv2", "-g", "12", "-qscale", "3"),
    "vp8": ("-c:v", "libvpx", "-g", "12", "-b:v", "500k"),
}


def cut(whole: Path, path: Path, first: int) -> Path:
    """A copy of the packets from number `first` on, as `-c copy` makes it."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if number >= first and packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    return path


@pytest.mark.parametrize(
    ("codec", "container", "cuts"),
    [
        ("mpeg4", "mkv", "mkv mp4 avi"),
        ("mpeg4 with B-frames", "mkv", "mkv mp4 avi"),
        ("mpeg2", "mkv", "mkv mp4 avi ts"),
        ("h264", "mkv", "mkv mp4 ts"),
        ("h264 with open groups", "mkv", "mkv mp4"),
        ("h264 with refresh", "mkv", "mkv mp4"),
        ("hevc with open groups", "mkv", "mkv mp4 ts"),
        ("hevc with leading", "mkv", "mkv mp4 ts"),
        ("wmv2", "avi", "avi"),
        ("vp8", "mkv", "mkv avi"),
    ],
)
def test_frames_before_the_first_whole_one_are_left_out(tmp_path: Path, codec: str, container: str, cuts: str) -> None:
    """What is left are frames of the whole video, to the bit, up to its end; and it is said."""
    whole = moving(tmp_path / f"whole.{container}", *CODECS[codec])
    frames = shown(whole)
    assert held(whole) == (50, "", "")
    for name in cuts.split():
        path = cut(whole, tmp_path / f"cut.{name}", 5)
        left = shown(path)
        assert 15 < len(left) < 46 and np.array_equal(left, frames[-len(left) :]), name
        count, fault, note = held(path)
        assert (count, fault) == (len(left), "") and note.endswith("since no key frame comes before"), name


def test_a_video_without_any_key_frame_is_listed(tmp_path: Path) -> None:
    whole = moving(tmp_path / "whole.mkv", "-c:v", "mpeg4", "-g", "600", "-sc_threshold", "1000000000")
    assert held(cut(whole, tmp_path / "cut.mkv", 5)) == (0, "no frame can be decoded", "")


def test_cut_files_of_people_agree_in_cache_and_stream(tmp_path: Path, clips: Path) -> None:
    root = clips / "people" / "08_cut_mid_gop"
    whole = shown(root / "whole" / "whole.avi")
    texts = ["up/cut.mkv", "up/cut.mp4"]
    stored = cached(tmp_path, root, texts)
    for text in texts:
        assert held(root / text) == (28, "", left_out(5))
        assert np.array_equal(stored[text], whole[12:])
        assert np.array_equal(VideoFiles(root, 60).frames(text, [27, 0]), whole[[39, 12]])


def test_a_hidden_key_frame_is_a_key_frame(tmp_path: Path) -> None:
    """An edit list that begins inside a group: the frames before are decoded and not shown."""
    whole = moving(tmp_path / "whole.mp4", *CODECS["mpeg4"])
    ffmpeg("-ss", "0.2", "-i", whole, "-c", "copy", tmp_path / "late.mp4")
    frames, late = shown(whole), shown(tmp_path / "late.mp4")
    assert len(late) == 45 and np.array_equal(late, frames[5:]) and held(tmp_path / "late.mp4") == (45, "", "")


# ---------------------------------------------------------------- promised numbers


def skipping(path: Path, kept: list[int], slots: int) -> Path:
    """An AVI with frames in these slots of time, and a header that counts `slots`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for slot in kept:
            frame = VideoFrame.from_ndarray(np.full((32, 48, 3), 5 * slot, np.uint8), format="rgb24")
            frame.pts = slot
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    blob = bytearray(path.read_bytes())
    struct.pack_into("<I", blob, 48, slots)  # dwTotalFrames
    struct.pack_into("<I", blob, blob.index(b"vids") + 32, slots)  # dwLength
    path.write_bytes(blob)
    return path


@pytest.mark.parametrize(
    ("kept", "slots"),
    [
        ([0, 2, 4, 5, 7, 8], 9),
        ([0, 10, 20, 30], 31),
        ([0, 1, 2, 3], 40),  # nothing at the end
        (list(range(0, 40, 2)), 40),
    ],
)
def test_an_avi_may_skip_slots(tmp_path: Path, kept: list[int], slots: int) -> None:
    path = skipping(tmp_path / "a.avi", kept, slots)
    assert held(path) == (len(kept), "", "")
    assert shown(path).mean((1, 2, 3)) == pytest.approx([5 * slot for slot in kept], abs=4)
    assert inspect(Address(path)).times == pytest.approx([slot / 25 for slot in kept])


def test_skipping_avis_of_people_are_sound(clips: Path) -> None:
    paths = sorted((clips / "people" / "02_skipped_frames").rglob("*.avi"))
    assert [held(path) for path in paths] == [(20, "", "")] * 8


@pytest.mark.parametrize("suffix", ["avi", "mov"])
def test_a_cut_file_is_still_listed(tmp_path: Path, suffix: str) -> None:
    """At a border of packets, where no picture is damaged."""
    extra = ("-movflags", "faststart") if suffix == "mov" else ()
    whole = moving(tmp_path / f"a.{suffix}", "-c:v", "mjpeg", *extra)
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos is not None]
    border = places[20] - (8 if suffix == "avi" else 0)
    (tmp_path / f"b.{suffix}").write_bytes(whole.read_bytes()[:border])
    assert held(tmp_path / f"b.{suffix}") == (20, "cut: 20 of 50 frames", "")


def test_empty_packets_and_edit_lists_are_no_fault(tmp_path: Path) -> None:
    whole = moving(tmp_path / "a.mkv", *CODECS["mpeg4"])
    with av.open(str(whole)) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is None:
                continue
            empty = av.Packet(b"")
            empty.pts = empty.dts = packet.pts * 2 + 1
            empty.time_base = packet.time_base
            packet.pts = packet.dts = packet.pts * 2
            for each in (packet, empty) if number % 10 == 5 else (packet,):
                each.stream = copy
                target.mux(each)
    assert held(tmp_path / "b.mp4")[:2] == (50, "")
    ffmpeg("-ss", "1", "-t", "0.6", "-i", whole, "-c", "copy", tmp_path / "c.mp4")
    assert held(tmp_path / "c.mp4")[1:] == ("", "")


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize(
    ("given", "wanted", "jumps"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], []),
        ([5, 6, 7, 0, 1, 2], [5, 6, 7, 8, 9, 10], [3]),  # a second recording
        ([0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6], [3, 5]),
        ([0, 1, 2, 90_000, 90_001], [0, 1, 2, 3, 4], [3]),  # a jump of a day
        ([95_442, 95_443, 0, 1], [95_442, 95_443, 95_444, 95_445], [2]),  # the wrap of MPEG-TS
        ([0, 1, 1, 2], [0, 1, 1, 2], []),  # equal times stay
        ([0, 1, None, 3], [0, 1, 2, 3], []),
        ([None, None, None], [0, 0.04, 0.08], []),
        ([0, 500, 1000], [0, 500, 1000], []),  # a slow clock is no jump
        ([0, 1, 2, 300, 301], [0, 1, 2, 300, 301], []),  # a pause of five minutes, neither
    ],
)
def test_a_clock_runs_on(given: list[float | None], wanted: list[float], jumps: list[int]) -> None:
    clock = Clock(25.0)
    assert [clock.read(time, None) for time in given] == pytest.approx(wanted) and clock.jumps == jumps
    assert bool(clock.note) == bool(jumps)


def test_times_out_of_order_are_those_of_decoding() -> None:
    """Packed B-frames: the file gives their presentation out of order, and their decoding in order."""
    clock = Clock(1.0)
    given = [(1, 1), (2, 2), (4, 3), (3, 4), (5, 5), (7, 6), (6, 7), (8, 8)]
    assert [clock.read(*pair) for pair in given] == [1, 2, 4, 4, 5, 6, 7, 8] and not clock.note


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_two_recordings_in_one_file_are_walked_through_evenly(tmp_path: Path, clips: Path) -> None:
    people = clips / "people" / "09_clock_jump" / "two_parts.ts"
    note = "its clock jumps at frame {}, and goes on by 0.04 s a frame there"
    assert held(people) == (75, "", note.format(25))
    part = moving(tmp_path / "a.ts", "-c:v", "mpeg2video", frames=30)
    own = joined(tmp_path / "b.ts", part, moving(tmp_path / "c.ts", "-c:v", "mpeg2video", frames=45))
    assert held(own) == (75, "", note.format(30))
    for path in (people, own):
        footage = inspect(Address(path))
        assert np.diff(footage.times) == pytest.approx([0.04] * 74)
        clip = Clip(frames=5, size=8, sampler="segments", sampling="time", rate=25.0)
        (view,) = eval_views(clip, 1, 1, Video(75, 60, 80, footage.times))
        assert view.frames.tolist() == [7, 22, 37, 52, 67]


def test_packed_b_frames_have_a_clock_without_jumps(clips: Path) -> None:
    footage = inspect(Address(clips / "odd" / "ucf101_packed_bframes.avi"))
    assert footage.note == "" and list(footage.times) == sorted(footage.times)


# ---------------------------------------------------------------- disguised files


@pytest.mark.parametrize(
    ("name", "text", "format_name"),
    [
        ("a.avi", "ffconcat version 1.0\nfile good.avi\n", "concat"),
        ("b.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "sdp"),
        ("c.mp4", "[playlist]\nFile1=good.avi\n", "lrc"),
        ("d.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\ngood.ts\n#EXT-X-ENDLIST\n", "hls"),
    ],
)
def test_a_list_of_other_files_is_refused(tmp_path: Path, name: str, text: str, format_name: str) -> None:
    write_video(tmp_path / "good.avi")
    write_video(tmp_path / "good.ts")
    (tmp_path / name).write_text(text, "utf-8")
    reason = f"not a video, but a list of other files or a format without frames of its own ({format_name})"
    assert held(tmp_path / name) == (0, reason, "") and probe(Address(tmp_path / name)) == (0, 0, 0)


def test_a_single_picture_is_no_video(tmp_path: Path) -> None:
    for suffix, name in (("png", "png"), ("jpg", "jpeg"), ("webp", "webp"), ("bmp", "bmp")):
        Image.new("RGB", (32, 24), (9, 99, 199)).save(tmp_path / f"a.{suffix}")
        (tmp_path / "a.mp4").write_bytes((tmp_path / f"a.{suffix}").read_bytes())
        for path in (tmp_path / f"a.{suffix}", tmp_path / "a.mp4"):
            assert held(path) == (0, f"a single picture ({name}), not a video", "")
    for number in range(3):
        Image.new("RGB", (32, 24)).save(tmp_path / f"p{number}.png")
    (tmp_path / "p%d.png").write_bytes((tmp_path / "p0.png").read_bytes())  # a pattern to FFmpeg
    assert held(tmp_path / "p%d.png")[0] == 0


FORMATS = {
    "gif": (),
    "mts": ("-c:v", "libx264", "-f", "mpegts"),
    "m2ts": ("-c:v", "libx264"),
    "ogv": ("-c:v", "libtheora"),
    "mkv": ("-c:v", "libx264"),
    "webm": ("-c:v", "libvpx"),
    "wmv": ("-c:v", "wmv2"),
    "mpg": ("-c:v", "mpeg2video"),
    "flv": ("-c:v", "flv"),
    "mov": ("-c:v", "prores"),
    "3gp": ("-c:v", "mpeg4"),
    "vob": ("-c:v", "mpeg2video", "-f", "vob"),
    "mxf": ("-c:v", "mpeg2video"),
    "apng": ("-plays", "0"),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_usual_containers_are_read(tmp_path: Path, suffix: str) -> None:
    arguments = ["-pix_fmt", "rgb24"] if suffix == "apng" else []
    path = tmp_path / f"a.{suffix}"
    pixel = {"gif": "rgb8", "mov": "yuv422p10le", "apng": "rgb24"}.get(suffix, "yuv420p")
    source = "testsrc2=s=80x60:r=25:d=0.48"
    ffmpeg("-f", "lavfi", "-i", source, *FORMATS[suffix], *arguments, "-pix_fmt", pixel, path)
    theirs = ffmpeg("-i", path, "-fps_mode", "passthrough", "-pix_fmt", "gray", "-f", "rawvideo", "-")
    assert held(path) == (len(theirs) // (80 * 60), "", "") and len(theirs) >= 11 * 80 * 60  # Theora drops the last one


def test_a_gif_of_one_frame_is_a_short_video(tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), (9, 99, 199)).save(tmp_path / "a.gif")
    assert held(tmp_path / "a.gif") == (1, "", "")


# ---------------------------------------------------------------- parts of videos

PARTS = {  # of a video of 40 frames at 10 a second
    "#f=5,9": (range(5, 9), ""),
    "#f=0,40": (range(40), ""),
    "#f=35,43": (range(35, 40), "cut: 5 of 8 frames"),
    "#f=50,60": (range(0), "cut: 0 of 10 frames"),
    "#t=0.5,0.9": (range(5, 9), ""),
    "#t=3.5,4": (range(35, 40), ""),
    "#t=3,9": (range(30, 40), "cut: 10 frames, since the video ends after 4.00 of 9 seconds"),
    "#t=7,9": (range(0), "no frame in this part: the video ends after 4.00 of 9 seconds"),
    "#t=0.51,0.52": (range(0), "no frame lies in this part"),
}


@pytest.mark.parametrize("suffix", ["avi", "mp4", "ts"])
def test_parts_are_the_frames_of_the_whole(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a.{suffix}", 40, noisy=True)
    whole = decode(Address(tmp_path / f"a.{suffix}"), 32)
    texts = [f"a.{suffix}{part}" for part in PARTS]
    stored = cached(tmp_path, tmp_path, texts, 32)
    for text, (numbers, fault) in zip(texts, PARTS.values(), strict=True):
        found = decode(Address.read(tmp_path, text), 32)
        assert found.fault == fault and found.footage.frames == len(numbers), text
        assert found.footage.times == whole.footage.times[numbers.start : numbers.stop]
        if numbers:
            assert np.array_equal(found.frames_THWC, whole.frames_THWC[numbers.start : numbers.stop])
            assert np.array_equal(stored[text], found.frames_THWC)
            assert np.array_equal(VideoFiles(tmp_path, 32).frames(text, [2, 0]), found.frames_THWC[[2, 0]])
    assert probe(Address.read(tmp_path, f"a.{suffix}#f=5,9"))[0] == 4


def test_a_part_is_read_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage behind the part is not seen, and no frame outside it is converted."""
    write_video(tmp_path / "a.avi", 40, noisy=True)
    blob = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "b.avi").write_bytes(blob[: len(blob) * 2 // 3])
    assert held(Address.read(tmp_path, "b.avi"))[1] and held(Address.read(tmp_path, "b.avi#f=3,9")) == (6, "", "")
    made: list[int] = []

    def counting(picture: Picture, side: int) -> np.ndarray:
        made.append(side)
        return pixels(picture, side)

    monkeypatch.setattr("stagedkd.data.decode.pixels", counting)
    assert len(shown(Address.read(tmp_path, "a.avi#f=3,9"))) == len(made) == 6
    assert len(VideoFiles(tmp_path, 16).frames("a.avi", [4, 7])) == 2 and len(made) == 8


# ---------------------------------------------------------------- folders of pictures


def pictures(folder: Path, numbers: list[int], form: str = "img_{:05}.png", size: tuple[int, int] = (40, 32)) -> Path:
    """Numbered pictures whose brightness is 5 times their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, (5 * number,) * 3).save(folder / form.format(number))
    return folder


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_pictures_are_frames_in_the_order_of_their_numbers(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path / "clip", list(range(1, 13)), f"{{}}.{suffix}")  # without zeros: 10 sorts before 2 as text
    (tmp_path / "clip" / "notes.txt").write_text("no picture", "utf-8")
    address = Address.read(tmp_path, f"clip/{{}}.{suffix}")
    found = decode(address, 16)
    assert found.footage == inspect(address) and (found.fault, list(found.footage.times)) == ("", [])
    assert found.frames_THWC.shape == (12, 16, 20, 3) and probe(address) == (12, 32, 40)
    assert found.frames_THWC.mean((1, 2, 3)) == pytest.approx([5.0 * i for i in range(1, 13)], abs=1)
    assert len(shown(Address.read(tmp_path, f"clip/{{}}.{suffix}#f=2,6"))) == 4


def drop(number: int) -> Callable[[Path], None]:
    return lambda folder: (folder / f"img_{number:05}.png").unlink()


def truncate(folder: Path) -> None:
    path = folder / "img_00004.png"
    path.write_bytes(path.read_bytes()[:60])


def spoil(folder: Path) -> None:
    (folder / "img_00004.png").write_bytes(b"no picture")


def enlarge(folder: Path) -> None:
    pictures(folder, [4], size=(20, 10))


def twice(folder: Path) -> None:
    pictures(folder, [4], "img_{:06}.png")


def empty(folder: Path) -> None:
    (folder / "img_00004.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("numbers", "change", "frames", "fault"),
    [
        ([0, 5, 10, 15], None, 4, ""),
        ([7, 8, 9], None, 3, ""),
        (list(range(1, 10)), drop(7), 6, "cut after 6 frames: picture 7 is missing"),
        ([5, 10, 15, 25, 30], None, 3, "cut after 3 frames: picture 20 is missing"),
        ([0, 5, 10, 12, 15, 20], None, 3, "cut after 3 frames: picture 12 follows picture 10"),
        (list(range(1, 10)), twice, 4, "cut after 4 frames: picture 4 is there twice"),
        (
            list(range(1, 10)),
            enlarge,
            3,
            "cut after 3 frames: img_00004.png has 20 x 10 pixels, those before have 40 x 32",
        ),
        (list(range(1, 10)), truncate, 3, "cut after 3 frames: img_00004.png: "),
        (list(range(1, 10)), spoil, 3, "cut after 3 frames: img_00004.png: cannot identify image file 'img_00004.png'"),
        (list(range(1, 10)), empty, 3, "cut after 3 frames: img_00004.png: zero bytes"),
        ([], None, 0, "no picture of this name"),
    ],
)
def test_bad_folders_are_named(
    tmp_path: Path, numbers: list[int], change: Callable[[Path], None] | None, frames: int, fault: str
) -> None:
    pictures(tmp_path / "clip", numbers)
    if change is not None:
        change(tmp_path / "clip")
    count, found, note = held(Address.read(tmp_path, "clip/img_{:05}.png"))
    assert (count, note) == (frames, "") and (found == fault or (fault.endswith(": ") and found.startswith(fault)))
    assert len(shown(Address.read(tmp_path, "clip/img_{:05}.png"))) == frames


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert held(Address.read(tmp_path, "none/img_{:05}.jpg")) == (0, "missing", "")


def test_pictures_are_upright_and_of_eight_bits(tmp_path: Path) -> None:
    """EXIF orientation, grey of 8 and 16 bits, palettes and alpha."""
    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8), (32, 1))
    grey, exif = Image.fromarray(ramp), Image.Exif()
    exif[0x0112] = 6  # the stored picture must be turned clockwise
    grey.convert("RGB").save(tmp_path / "a1.png", exif=exif)
    grey.save(tmp_path / "b1.png")
    Image.fromarray(ramp.astype(np.uint16) * 256 + 7).save(tmp_path / "c1.png")
    grey.convert("P").save(tmp_path / "d1.png")
    grey.convert("RGBA").save(tmp_path / "e1.png")
    wanted = np.repeat(ramp[None, ..., None], 3, -1)
    assert np.array_equal(shown(Address.read(tmp_path, "a{}.png"), 32), np.rot90(wanted, 3, (1, 2)))
    for name in "bcde":
        assert np.array_equal(shown(Address.read(tmp_path, name + "{}.png"), 32), wanted), name


def test_raw_frames_of_people_are_clips(tmp_path: Path, clips: Path) -> None:
    """The pixels of Pillow's decoder, from the cache and from the files alike."""
    root, text = clips / "people" / "07_rawframes", "left/clip1/img_{:05}.jpg"
    assert held(Address.read(root, text)) == (8, "", "")
    paths = sorted((root / "left" / "clip1").iterdir())
    wanted = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    assert np.array_equal(cached(tmp_path, root, [text], 24)[text], wanted)
    assert np.array_equal(VideoFiles(root, 24).frames(text, [6, 1]), wanted[[6, 1]])


def test_pictures_have_no_clock(tmp_path: Path) -> None:
    pictures(tmp_path / "clip", list(range(1, 9)))
    footage = inspect(Address.read(tmp_path, "clip/img_{:05}.png"))
    timed = Reading(decoder="pyav", span=4, rate=10.0, refuse=False)
    reason = "pictures have no clock, which clip.sampling: time needs: use clip.sampling: count"
    assert problem_of(footage, timed) == (reason, True)
    assert problem_of(footage, Reading(decoder="pyav", span=4, rate=None, refuse=False)) == ("", False)
    part = held(Address.read(tmp_path, "clip/img_{:05}.png#t=0,1"))
    assert part == (0, "pictures have no clock: name the part by its frames", "")


# ---------------------------------------------------------------- torchcodec


def test_torchcodec_must_give_the_same_frames(tmp_path: Path, clips: Path) -> None:
    try:
        require_torchcodec()
    except UsageError as error:
        pytest.skip(error.message)
    people, advice = clips / "people", "use clip.decoder: pyav"
    wanted = {
        "03_mirrored/hflip.mp4": f"torchcodec does not set frame 0 upright: {advice}",
        "03_mirrored/plain.mp4": "",
        "02_skipped_frames/left/0.avi": "",
        "07_rawframes/left/clip1/img_{:05}.jpg": f"torchcodec reads no folders of pictures: {advice}",
        "03_mirrored/plain.mp4#t=0,0.1": f"torchcodec reads no parts by seconds: {advice}",
        "03_mirrored/plain.mp4#f=1,4": "",
        "03_mirrored/plain.mp4#f=1,9": "cut: 4 of 8 frames",
    }
    assert {text: proven(Address.read(people, text)).fault for text in wanted} == wanted
    for text in ("08_cut_mid_gop/up/cut.mkv", "08_cut_mid_gop/up/cut.mp4", "09_clock_jump/two_parts.ts"):
        footage = proven(Address.read(people, text))
        assert footage.frames == 0 and footage.fault.startswith("torchcodec ")


# ---------------------------------------------------------------- long videos


def many(folder: Path, frames: int = 80) -> CacheSpec:
    for number in range(3):
        write_video(folder / f"{number}.avi", frames + number, noisy=True)
    return CacheSpec(folder, marks(folder, [f"{number}.avi" for number in range(3)]), 32)


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_a_long_clip_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    """The same frames as from a shard, and none of them in memory."""
    spec = replace(many(tmp_path / "v"), form=form)
    whole = open_cache(tmp_path / "a", spec, 1, lambda *_: None, lambda _: None)
    monkeypatch.setattr(shard, "OWN", 20_000)
    notes: list[str] = []
    own = open_cache(tmp_path / "b", spec, 2, lambda *_: None, notes.append)
    names = sorted(path.name for path in (tmp_path / "b" / spec.name).iterdir())
    assert names == [
        *(f"shard-00000-0{k}.bin" for k in range(3)),
        "shard-00000.bin",
        "shard-00000.json",
        "shard-00000.times",
    ]
    assert "of frames in memory" in notes[0]
    for text in spec.files:
        assert np.array_equal(own.frames(text), whole.frames(text)) and own.clip(text).crcs == whole.clip(text).crcs
        assert np.array_equal(own.frames(text, [70, 3]), whole.frames(text)[[70, 3]])
    assert list(differences(own, spec, 2, lambda *_: None)) == []
    (tmp_path / "v" / "1.avi").write_bytes((tmp_path / "v" / "2.avi").read_bytes())
    assert list(differences(own, spec, 2, lambda *_: None)) == ["1.avi: the cached frames differ from a fresh decode"]
    longer = tmp_path / "b" / spec.name / "shard-00000-02.bin"
    longer.write_bytes(longer.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"shard-00000-02\.bin has another size"):
        open_cache(tmp_path / "b", spec, 1, lambda *_: None, lambda _: None)


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_only_the_blocks_that_are_read_are_checked(tmp_path: Path, form: Form) -> None:
    spec = replace(many(tmp_path / "v"), form=form)
    cache = open_cache(tmp_path / "c", spec, 1, lambda *_: None, lambda _: None)
    clip = cache.clip("1.avi")
    assert len(clip.crcs) == 3 + (form == "jpeg")
    whole, blob = cache.frames("1.avi"), tmp_path / "c" / spec.name / clip.file
    broken = bytearray(blob.read_bytes())
    broken[clip.offset + clip.size // 2] ^= 1  # in frames 32 to 63
    blob.write_bytes(broken)
    again = open_cache(tmp_path / "c", spec, 1, lambda *_: None, lambda _: None)
    assert np.array_equal(again.frames("1.avi", [0, 31, 64, 80]), whole[[0, 31, 64, 80]])
    with pytest.raises(StoreError, match=r"is damaged at 1\.avi"):
        again.frames("1.avi", [31, 40])
    (line,) = differences(again, spec, 1, lambda *_: None)
    assert line.startswith("1.avi: the clip cache ") and line.endswith("is damaged at 1.avi")


def test_a_build_stops_within_a_long_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one makes the same cache."""
    spec = many(tmp_path / "v")
    monkeypatch.setattr(shard, "OWN", 20_000)
    monkeypatch.setattr(caches, "WAIT", 0.01)
    decoded: list[int] = []
    slow = shard.pixels

    def waiting(picture: Picture, side: int) -> np.ndarray:
        decoded.append(side)
        time.sleep(0.01)
        return slow(picture, side)

    def stop(done: int, _of: int) -> None:
        if len(decoded) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(shard, "pixels", waiting)
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "c", spec, 2, stop, lambda _: None)
    assert len(decoded) < 80
    monkeypatch.setattr(shard, "pixels", slow)
    for folder in ("c", "d"):
        open_cache(tmp_path / folder, spec, 2, lambda *_: None, lambda _: None)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / f / spec.name).glob("*.[bj]*")} for f in "cd")
    assert one == other and len(one) == 5


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_a_frame_leaves_memory_when_it_is_stored(tmp_path: Path, form: Form) -> None:
    """Without waiting for a garbage collection, which PyAV's `frame.side_data` would need."""
    write_video(tmp_path / "a.avi", 60)
    gc.collect()
    gc.disable()
    try:
        store_clip(Address(tmp_path / "a.avi"), 16, form, None, Event())
        assert not [each for each in gc.get_objects() if type(each) is VideoFrame]
    finally:
        gc.enable()
