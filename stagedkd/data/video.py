"""Read a video file: its best video stream, packet by packet, from the first frame that is whole to the first error."""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import av
from av import logging
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from stagedkd.data.clock import Clock
from stagedkd.data.upright import Orientation

_CONTAINERS = (  # FFmpeg's names of the formats that hold their own frames; no playlist, no list of pictures
    "3gp,amv,apng,asf,av1,avi,cavsvideo,dirac,dv,f4v,flv,gif,gxf,h261,h263,h264,hevc,ivf,jpegxl_anim,m4v,"
    "matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nsv,nut,nuv,obu,ogg,rm,swf,vc1,vc1test,vvc,webm,"
    "webp_anim,wtv,yuv4mpegpipe"
)
OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
# Tags that are not UTF-8 are no fault of a video. PyAV 19 always reads them; it has no such option.
_TAGS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.partition(".")[0]) < 19 else {}
# Decoders that start on a grey picture where the first key frame is missing. All others refuse, or wait for a frame
# that is whole: a key frame, or the end of a recovery (H.264, HEVC, MPEG-2).
_GREY = "flv1 h261 h263 h263i h263p mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 rv10 rv20 rv30 rv40 svq3 vc1 wmv1 wmv2 wmv3"
GREY = frozenset(_GREY.split())
ERRORS = (FFmpegError, ValueError, MemoryError, OverflowError, EOFError, OSError)


@dataclass(frozen=True)
class Picture:
    """A decoded picture, how it becomes upright, and its time in seconds; pictures of a folder have no time.

    The pictures of one reader share a `scaler`: to set one up takes longer than to scale a small picture.
    """

    frame: VideoFrame
    upright: Orientation
    time: float | None
    scaler: VideoReformatter = field(default_factory=VideoReformatter, compare=False, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the upright picture in pixels."""
        return self.upright.size(self.frame.height, self.frame.width)


@dataclass
class FrameReader:
    """Reads the pictures of a clip in order. The fields are valid once `pictures` has ended or was stopped.

    Attributes:
        refused: why the file was not read at all, else "".
        fault: what is wrong with the frame that the reading stopped at, else "".
        missing: the number of frames that the file says it has and that are not there.
        note: what was done to sound frames, else "".
        step: the usual time between two frames, in seconds; 0 if there is none.
    """

    refused: str = ""
    fault: str = ""
    missing: int = 0
    note: str = ""
    step: float = 0.0

    def pictures(self) -> Generator[Picture]:
        """Yield the pictures up to the first error. A bad file raises nothing."""
        raise NotImplementedError


class VideoReader(FrameReader):
    """Reads the best video stream of a file.

    A frame that the decoder had to conceal errors in counts as an error, and so does a packet that it refuses.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def pictures(self) -> Generator[Picture]:
        logging.set_level(logging.PANIC)
        self.refused = why_unreadable(self.path)
        if self.refused:
            return
        try:
            with open_video(self.path) as container:
                stream = container.streams.best("video")
                if not isinstance(stream, VideoStream):
                    self.refused = "no video stream"
                elif cast("Any", stream).codec_context is None:
                    self.refused = "no decoder for its codec"
                else:
                    yield from self._read(_Packets(self.path, container, stream), Clock(_rate(stream)))
        except ERRORS as error:
            self.refused = _not_a_video(error)
            self.fault = "" if self.refused else _reason(error)

    def _read(self, packets: _Packets, clock: Clock) -> Generator[Picture]:
        upright, first, count, scaler = Orientation(), (0, 0), 0, VideoReformatter()
        try:
            for frame in packets.frames():
                turned = Orientation.read(frame) or upright  # where a frame has no matrix, the last one goes on
                if frame.is_corrupt:
                    self.fault = "a damaged picture"
                elif count and turned != upright:
                    self.fault = "the picture changes its orientation"
                elif count and (frame.height, frame.width) != first:
                    self.fault = "the picture changes its size"
                if self.fault:
                    return
                upright, first, count = turned, (frame.height, frame.width), count + 1
                yield Picture(frame, upright, clock.read(frame.time, _decoding_time(frame)), scaler)
            self.missing = packets.missing(count)
        finally:
            self.note = "; ".join(note for note in (packets.note, clock.note) if note)
            self.step = clock.step


class _Packets:
    """Decodes the packets of a stream, and counts what they hold."""

    def __init__(self, path: Path, container: InputContainer, stream: VideoStream) -> None:
        self.path, self.container, self.stream = path, container, stream
        self.codec = stream.codec_context
        self.codec.thread_type = ThreadType.NONE  # so that an error is reported with the frame it belongs to
        self.early: list[int] = []  # the times of the packets before the first frame
        self.left_out, self.discarded, self.slots = 0, 0, 0
        self.started, self.hidden_key = False, False

    @property
    def note(self) -> str:
        """The number of pictures that were left out; "" if none was."""
        if not self.left_out:
            return ""
        which = f"first {self.left_out} pictures are" if self.left_out > 1 else "first picture is"
        return f"the {which} left out, since no key frame comes before"

    def frames(self) -> Iterator[VideoFrame]:
        """Decode packet by packet; leave out what comes before the first frame that is whole."""
        last: Packet[VideoStream] | None = None
        for packet in self.container.demux(self.stream):
            if not packet.size:  # a decoder takes an empty packet for the end
                last = packet
                continue
            self._count(packet)
            try:
                frames = packet.decode()
            except ERRORS:
                if self.started or packet.is_keyframe:
                    raise
                continue
            yield from self._whole(frames)
        if last is not None:
            yield from self._whole(last.decode())

    def _count(self, packet: Packet[VideoStream]) -> None:
        self.discarded += packet.is_discard
        self.hidden_key |= packet.is_discard and packet.is_keyframe
        time = packet.pts if packet.pts is not None else packet.dts
        self.slots = max(self.slots, 1 + (packet.dts or 0))
        if not self.started and not packet.is_discard:
            self.early.append(0 if time is None else time)

    def _whole(self, frames: Sequence[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            key = frame.key_frame or frame.pict_type == PictureType.I or self.hidden_key
            if not self.started and (key or self.codec.name not in GREY):
                self.started = True
                if frame.pts is not None:
                    self.left_out = sum(time < frame.pts for time in self.early)
            if self.started:
                yield frame

    def missing(self, count: int) -> int:
        """Return how many frames the file says it has beside the `count` frames that were read.

        The truth is the index, which lists every packet. The header of an AVI counts slots of time, which a recorder
        may leave empty; it only counts if the file is shorter than it says.
        """
        names = self.container.format.name.split(",")
        if "avi" in names and _is_cut_avi(self.path):
            return self.stream.frames - self.slots
        promised = self.stream.frames - self.discarded
        if "avi" in names or "mov" in names:
            promised = sum(not entry.is_discard for entry in self.stream.index_entries)
        missing = promised - self.left_out - count
        return missing if missing > max(2, 0.05 * promised) else 0  # indexes of intact files are off by one or two


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or 25)


def _decoding_time(frame: VideoFrame) -> float | None:
    return None if frame.dts is None or frame.time_base is None else float(frame.dts * frame.time_base)


def open_video(path: Path) -> InputContainer:
    """Open a file as a video, if its format holds its own frames. Raises FFmpegError."""
    return av.open(f"file:{path}", options=dict(OPTIONS), **_TAGS)


def _is_cut_avi(path: Path) -> bool:
    """Return whether an AVI is shorter than its RIFF headers say."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as stream:
        while stream.seek(place) < size and (head := stream.read(8))[:4] == b"RIFF":
            place += 8 + int.from_bytes(head[4:], "little")
    return place > size


def _not_a_video(error: BaseException) -> str:
    """Return why a format is refused, or "" if the error is another one."""
    log = getattr(error, "log", None)
    if not log or "not on whitelist" not in log[2]:
        return ""
    if log[1].endswith("_pipe"):
        return f"a single picture ({log[1].removesuffix('_pipe')}), not a video"
    return f"not a video, but a list of other files or a format without frames of its own ({log[1]})"


def why_unreadable(path: Path) -> str:
    """Return why a file must not be opened, or "" if it can be. FFmpeg would wait for ever on a pipe."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "not a file"
        if status.st_size == 0:
            return "zero bytes"
        with path.open("rb"):
            return ""
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message, at most 80 characters."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(message).splitlines()[0][:80]


def probe_video(path: Path) -> tuple[int, int, int, float]:
    """Return frames, height, width and frames a second as a file's header states them; zeros if it cannot be read."""
    logging.set_level(logging.PANIC)
    if why_unreadable(path):
        return 0, 0, 0, 0.0
    try:
        with open_video(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                return 0, 0, 0, 0.0
            rate = float(getattr(stream, "average_rate", None) or 25)
            frames = stream.frames or round(float(container.duration or 0) / 1_000_000 * rate)
            return frames, int(getattr(stream, "height", 0)), int(getattr(stream, "width", 0)), rate
    except ERRORS:
        return 0, 0, 0, 0.0
