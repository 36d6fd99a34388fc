"""Sections `clip` and `augment`: the frames and pixels of a video that the networks see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, Tag, model_validator

from stagedkd.spec.schema.base import Count, Fraction, Section, by_form

Side = Annotated[int, Field(ge=8, le=1024)]
Colour: TypeAlias = tuple[float, float, float]
Frames: TypeAlias = Literal["shuffled", "single"]
STATISTICS: Mapping[str, tuple[Colour, Colour]] = {
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def sides(size: Size) -> tuple[int, int]:
    """Return height and width of a size: a square is one number."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: Size) -> str:
    """Return a size as a user writes it in a spec: `112`, or `[64, 160]`."""
    return str(size) if isinstance(size, int) else f"[{size[0]}, {size[1]}]"


def _canonical(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """Return a square as one number, so that both ways to write it have the same key."""
    height, width = sides(size)
    return height if height == width else (height, width)


Size: TypeAlias = Annotated[
    Annotated[Side, Tag("number")] | Annotated[tuple[Side, Side], Tag("list")],
    by_form("a whole number or [height, width]", length=2),
    AfterValidator(_canonical),
]


class Clip(Section):
    """The view of a video that all networks share. A network may derive its own `input` from it."""

    frames: Annotated[int, Field(ge=1, le=512)] = 16
    """Number of frames of a clip."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Distance between the frames of a clip, under `sampler: dense`; 1 takes every frame of the video."""
    size: Size = 112
    """Height and width in pixels: one number for squares, or [height, width]."""
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Shorter side, in pixels, of the frames from which clips are cropped. Unset: 8/7 of `size`, or of its longer side,
    so that no crop is enlarged, whatever the shape of the videos."""
    sampler: Literal["dense", "segments"] = "dense"
    """How the frames of a clip are chosen. dense: `frames` frames at a distance of `stride`. segments: the video is
    divided into `frames` equal parts, and one frame is taken from each (TSN, Wang et al. 2016)."""
    sampling: Literal["count", "time"] = "count"
    """Unit of `stride`. count: frames of the video. time: ticks of `rate`, which is right if frame rates differ or
    vary."""
    rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Ticks per second, under `sampling: time`."""
    short: Literal["loop", "pad", "refuse"] = "loop"
    """Treatment of a video with too few frames. loop: the video is looped. pad: its last frame is repeated. refuse: it
    is a bad file."""
    views: Count | None = None
    """Number of different random views of each training clip; each epoch uses one. Views then come back, so that the
    outputs of frozen networks are kept and not computed again. Unset: a new view in every epoch."""
    cache: Literal["raw", "jpeg", "none"] = "raw"
    """Cache of the decoded frames. raw: the frames as they are. jpeg: JPEG of quality 95, about an eighth of the size,
    which changes the pixels. none: no cache; the videos are decoded every time, and the pixels are those of raw."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """Decoder of the videos. pyav: decodes in sequence. torchcodec (an extra, only with `cache: none`): seeks; a file
    for which seeking gives other frames than a sequential decode is a bad file."""

    @model_validator(mode="after")
    def _room(self) -> Clip:
        if self.resize is not None and self.resize < min(sides(self.size)):
            of = "" if isinstance(self.size, int) else "the shorter side of "
            raise ValueError(f"resize {self.resize} is smaller than {of}size {size_text(self.size)}")
        if self.sampling == "time" and self.rate is None:
            raise ValueError("sampling: time needs rate, in frames per second")
        if self.sampling == "count" and self.rate is not None:
            raise ValueError("rate needs sampling: time")
        return self

    @property
    def shorter_side(self) -> int:
        """Shorter side of the decoded frames, in pixels."""
        return self.resize or round(max(sides(self.size)) * 8 / 7)

    @property
    def span(self) -> int:
        """Length of a clip, from its first frame to the end of its last, in frames or ticks of `rate`."""
        return self.frames if self.sampler == "segments" else (self.frames - 1) * self.stride + 1

    def seen(self, view: Input | None) -> tuple[int, Size]:
        """Return the clip that a network with the input `view` gets: its frames, and its size in pixels (a number for
        squares, else height and width)."""
        frames = view.frames if view and view.frames else self.frames
        return frames, (view.size if view and view.size else self.size)


class Augment(Section):
    """Augmentation of training clips. Random views are drawn by (seed, epoch, clip), and mixed clips by (seed, epoch,
    step)."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Smallest area of a random crop, as a fraction of the largest box of the view's shape in the frame. 1: that
    box."""
    ratio: Annotated[float, Field(ge=1, le=4)] = 4 / 3
    """Largest ratio of the sides of a crop to those of the view, in either direction."""
    flip: Fraction | None = None
    """Probability of a mirror image. Unset: 0.5, or 0 if classes are mirror images of each other, such as left and
    right."""
    jitter: Fraction = 0.2
    """Largest relative change of brightness, contrast and saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest rotation of the hue, in turns of the colour circle."""
    tempo: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of the stride."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of MixUp (Zhang et al. 2018), applied after the views. 0: no MixUp."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of CutMix (Yun et al. 2019), with the same box in all frames. If mixup is also set, each batch uses one of
    the two. 0: no CutMix."""


class Input(Section):
    """The input that one network derives from the shared view, for example a teacher at 224 beside a student at 112."""

    frames: Annotated[int, Field(ge=1, le=512)] | None = None
    """Number of frames, taken evenly from those of the view. Unset: all of them."""
    size: Size | None = None
    """Height and width in pixels, to which the view is scaled: one number for squares, or [height, width]. Unset: those
    of the view."""
    normalize: Literal["kinetics", "imagenet", "half", "none"] = "kinetics"
    """Mean and standard deviation by which colours are normalised to mean 0 and deviation 1: those of Kinetics, those
    of ImageNet, or one half each (half). none: the colours stay between 0 and 1."""

    @property
    def statistics(self) -> tuple[Colour, Colour]:
        """Mean and standard deviation of the channels, as published weights expect them."""
        return STATISTICS[self.normalize]

    def taken(self, frames: int) -> tuple[int, ...]:
        """Return which frames of a clip of so many the network gets: the middles of equal parts."""
        wanted = self.frames or frames
        return tuple((2 * i + 1) * frames // (2 * wanted) for i in range(wanted))
