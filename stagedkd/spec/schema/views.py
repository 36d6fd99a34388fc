"""Sections `clip` and `augment`: which frames and pixels of a video the networks see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stagedkd.spec.schema.base import Count, Section, Share


class Clip(Section):
    """The view of a video that all networks share; a network may make its own `input` of it."""

    frames: Annotated[int, Field(ge=1, le=512)] = 16
    """Frames of a clip."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Every how many frames of the video one is taken, under `sampler: dense`."""
    size: Annotated[int, Field(ge=8, le=1024)] = 112
    """Height and width in pixels."""
    resize: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Shorter side in pixels of the frames from which clips are cropped; unset: 8/7 of the size."""
    sampler: Literal["dense", "segments"] = "dense"
    """dense: a window of `frames` frames, every `stride` one. segments: the video in `frames` equal parts and one frame
    of each (TSN, Wang et al. 2016)."""
    sampling: Literal["count", "time"] = "count"
    """What a stride counts: frames, or time at `rate`, which is right where frame rates differ or vary."""
    rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Frames per second under `sampling: time`."""
    short: Literal["loop", "pad", "refuse"] = "loop"
    """What happens to a video with too few frames: it is looped, its last frame is repeated, or it is a bad file."""
    views: Count | None = None
    """Random views of a training clip that exist; each epoch shows one. Unset: a new one every epoch."""
    cache: Literal["raw", "jpeg", "none"] = "raw"
    """Decoded frames are kept as they are, as JPEG of quality 95 (about a tenth of the size, and other pixels), or not
    at all: then the videos are read again and again, for the same pixels as raw."""
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    """What reads the videos. torchcodec (an extra, for `cache: none`) seeks; a file where that gives other frames than
    a sequential decode is a bad file."""

    @model_validator(mode="after")
    def _room(self) -> Clip:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than size {self.size}")
        if self.sampling == "time" and self.rate is None:
            raise ValueError("sampling: time needs rate, in frames per second")
        if self.sampling == "count" and self.rate is not None:
            raise ValueError("rate goes with sampling: time")
        return self

    @property
    def shorter_side(self) -> int:
        """Shorter side of the decoded frames in pixels."""
        return self.resize or round(self.size * 8 / 7)

    @property
    def span(self) -> int:
        """Steps from the first frame of a clip to behind its last, in frames or ticks of `rate`."""
        return self.frames if self.sampler == "segments" else (self.frames - 1) * self.stride + 1

    def seen(self, by: Input | None) -> tuple[int, int]:
        """Frames, and height = width in pixels, that reach a network with this `input`."""
        return (by.frames if by and by.frames else self.frames), (by.size if by and by.size else self.size)


class Augment(Section):
    """Random views of training clips, drawn by (seed, epoch, clip); mixing of clips, drawn by (seed, epoch, step)."""

    crop: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Smallest area of a random crop as a share of the frame; 1: the whole frame."""
    ratio: Annotated[float, Field(ge=1, le=4)] = 4 / 3
    """Largest ratio of the crop's sides, either way."""
    flip: Share | None = None
    """Chance of a mirror image; unset: 0.5, and 0 where classes are each other's mirror image (left and right)."""
    jitter: Share = 0.2
    """Largest relative change of brightness, contrast and saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the hue, in turns of the colour circle."""
    tempo: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of the stride."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of MixUp (Zhang et al. 2018), after the views; 0: none."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Alpha of CutMix (Yun et al. 2019), the same box in all frames; with mixup, each batch takes one of the two."""


class Input(Section):
    """What one network makes of the shared view, for example a teacher at 224 beside a student at 112."""

    frames: Annotated[int, Field(ge=1, le=512)] | None = None
    """Frames, taken evenly from those of the view; unset: all."""
    size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Height and width in pixels, scaled from the view's; unset: the view's."""
    normalize: Literal["kinetics", "imagenet", "half", "none"] = "kinetics"
    """Mean and deviation that colours are brought to zero and one by: those of Kinetics, of ImageNet, one half each, or
    none, which leaves 0 to 1."""
