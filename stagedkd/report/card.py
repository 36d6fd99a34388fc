"""`student.json`, the card of a student: what its weights do not say and whoever runs it must know. It lies beside the
weights and in every export. docs/use.md explains the fields; `stagedkd schema --student` prints the JSON Schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from stagedkd._version import __version__
from stagedkd.errors import StoreError
from stagedkd.plan.key import Key
from stagedkd.plan.work import NetworkWork
from stagedkd.spec.schema import Arch, Clip, Input, Section, sides
from stagedkd.spec.schema.views import Colour

CARD, WEIGHTS = "student.json", "student.safetensors"


class Frames(Section):
    """Which frames of a video the network gets."""

    frames: int
    """Number of frames of a clip."""
    taken: tuple[int, ...]
    """Which frames of the clip the network gets, counted from 0: all of them, unless its input has fewer."""
    sampler: Literal["dense", "segments"]
    """dense: frames at an even distance, from the middle of the video. segments: the video is divided into as many
    equal parts as there are frames, and the frame in the middle of each is taken."""
    stride: int
    """dense: the distance between two frames, in the unit of `rate`."""
    rate: float | None
    """Ticks a second that `stride` counts; null: it counts frames of the video, whatever their rate."""
    short: Literal["loop", "pad", "refuse"]
    """What a video with too few frames does: it begins again, or its last frame is repeated; `refuse` loops, too."""


class Picture(Section):
    """How a frame becomes a picture of the network's input: scaled, cropped, normalised."""

    resize: int
    """Pixels of the shorter side after the first scaling, by the mean of areas."""
    size: tuple[int, int]
    """Height and width of the crop, in pixels. The largest box of this shape is cut out of the middle of the frame,
    and scaled to this size (bilinear, antialiased) where it differs."""
    scaled_to: tuple[int, int] | None
    """Height and width to which the crop is scaled once more, the same way; null: it is not."""
    crop: Literal["centre"] = "centre"
    colours: Literal["RGB"] = "RGB"
    range: Literal["0..1"] = "0..1"
    """Values before they are normalised: bytes divided by 255."""
    mean: Colour
    """The mean of each channel that is subtracted."""
    deviation: Colour
    """The standard deviation of each channel that the difference is divided by."""


class Accuracy(Section):
    """What was measured, in 0..1."""

    split: str
    clips: int
    """Number of clips that were evaluated."""
    top1: float
    interval: tuple[float, float]
    """95% interval of top1 (Wilson)."""
    ece: float


class Versions(Section):
    """What wrote the weights."""

    stagedkd: str
    torch: str | None = None


class StudentCard(Section):
    """The content of student.json."""

    format: Literal["stagedkd student 1"] = "stagedkd student 1"
    name: str
    """The experiment's name."""
    key: Key
    """The key of the stage that made the weights; `stagedkd reproduce` rebuilds them from it."""
    weights: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of the file of weights that the card belongs to."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of the logits."""
    arch: Arch
    """The architecture, as a spec writes it."""
    frames: Frames
    picture: Picture
    layout: Literal["BCTHW"] = "BCTHW"
    """The order of the input's dimensions: clips, channels, frames, height, width."""
    quantised: Literal["int8"] | None = None
    """int8: the weights hold quantisers (`quantised_input`, `quantised_output`), and the network computes rounded
    numbers."""
    views: tuple[int, int] = (1, 1)
    """Clips and crops of each video that the evaluation took; their probabilities are averaged."""
    batch: int = 1
    """Videos that the evaluation took at once."""
    clip: Clip
    """The section `clip` of the spec, from which `frames` and `picture` follow."""
    input: Input | None = None
    """The section `input` of the network, if it derives its own input from the clip."""
    accuracy: Accuracy | None = None
    teacher: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """The teacher's name, architecture, accuracy and number of parameters."""
    parameters: int | None = None
    flops: int | None = None
    """2 x multiply-adds of one clip."""
    versions: Versions

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The input of one clip: channels, frames, height, width."""
        frames, size = self.clip.seen(self.input)
        return 3, frames, *sides(size)

    @property
    def text(self) -> str:
        """The content of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def frames_of(clip: Clip, view: Input | None) -> Frames:
    """Describe the choice of frames. An input of fewer frames takes the middles of equal parts of the clip."""
    return Frames(
        frames=clip.frames,
        taken=(view or Input()).taken(clip.frames),
        sampler=clip.sampler,
        stride=clip.stride,
        rate=clip.rate,
        short=clip.short,
    )


def picture_of(clip: Clip, view: Input | None) -> Picture:
    """Describe the way of a frame to the network."""
    size, own = sides(clip.size), sides(clip.seen(view)[1])
    mean, deviation = (view or Input()).statistics
    scaled_to = None if own == size else own
    return Picture(resize=clip.shorter_side, size=size, scaled_to=scaled_to, mean=mean, deviation=deviation)


def new_card(name: str, key: Key, work: NetworkWork, classes: Sequence[str], weights: str, **more: Any) -> StudentCard:
    """Make the card of the network that a stage made. `weights` is the digest of its file; `more` are further
    fields."""
    return StudentCard(
        name=name,
        key=key,
        weights=weights,
        classes=tuple(classes),
        arch=work.arch,
        frames=frames_of(work.clip, work.input),
        picture=picture_of(work.clip, work.input),
        clip=work.clip,
        input=work.input,
        quantised=work.quantised,
        versions=Versions(stagedkd=__version__),
    ).model_copy(update=more)


def accuracy_of(split: str, clips: int, top1: float, interval: tuple[float, float], ece: float) -> Accuracy | None:
    """The accuracy on a card; None where it was not measured."""
    return None if math.isnan(top1) else Accuracy(split=split, clips=clips, top1=top1, interval=interval, ece=ece)


def read_card(path: Path) -> StudentCard:
    """Read a student.json. Raises StoreError: it is missing, no card, or one of another version."""
    hint = "stagedkd report on its spec writes it anew"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
    try:
        return StudentCard.model_validate_json(content, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f" at {place}" if place else ""
        raise StoreError(f"{path} is no student.json of this version{where}: {first['msg']}", hint=hint) from None
