"""Section `data` of simulated sets: clips rendered from (seed, index), of a family and with knobs for what is hard."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from stagedkd.spec.schema.base import Count, Section, Seed, Share, Word, by_form

Classes: TypeAlias = Annotated[
    Annotated[int, Field(ge=2, le=12), Tag("number")] | Annotated[tuple[Word, ...], Field(min_length=2), Tag("list")],
    by_form("a number of classes or a list of their names"),
]


class Domain(Section):
    """How simulated clips look, apart from what happens in them: change it between training and test."""

    palette: Literal["dark", "light", "grey", "any"] = "dark"
    """Colours: bright bodies on dark ground, dark ones on light ground, both grey, or any colours."""
    background: Literal["plain", "gradient", "checker", "clutter"] = "plain"
    """What stands behind: one colour, a slope of two, squares, or standing boxes."""
    blur: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Standard deviation of a Gaussian blur as a share of the frame."""
    line: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Thickness of limbs and bodies, relative."""
    fps: Annotated[float, Field(gt=0, le=1000)] = 25.0
    """Frames that the simulated camera takes per second; where a clip has more, frames repeat."""
    viewpoint: Annotated[float, Field(ge=0, le=80)] = 0.0
    """Largest angle in degrees by which the camera stands off its usual place, to either side."""


class Simulated(Section):
    """Simulated clips, rendered from (seed, index) on the device. `shapes`: one moving shape, motion classes in
    time-reversal pairs, so that one frame does not tell the class. `figures`: a stick figure in action."""

    kind: Literal["shapes", "figures"]
    """The family of simulated clips."""
    classes: Classes = 12
    """The first so many classes of the family, or their names."""
    train: Count = 512
    """Training clips."""
    val: Count = 160
    """Validation clips."""
    test: Count = 160
    """Test clips."""
    seed: Seed = 0
    """Seed of the rendered clips."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Seconds that a clip lasts, however many frames show it."""
    speed: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Speed of the motion, relative."""
    amplitude: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Extent of the motion, relative."""
    noise: Share = 0.1
    """Largest pixel noise, uniform, in units of the pixel range."""
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Contrast between body and background, relative."""
    distractors: Annotated[int, Field(ge=0, le=8)] = 0
    """Bodies that stand still and mean nothing."""
    occlusion: Share = 0.0
    """Share of the frame's width that a standing bar hides."""
    camera: Share = 0.0
    """How far the camera drifts and shakes, as a share of the frame."""
    texture: Literal["plain", "noise"] = "plain"
    """noise: body and background are random dots of the same kind, and only motion tells them apart."""
    drop: Share = 0.0
    """Chance that a frame is lost and the one before it stays."""
    domain: Domain = Domain()
    """How the clips look."""
    test_domain: Domain | None = None
    """How those of the test split look; unset: like the others."""

    @model_validator(mode="after")
    def _twice(self) -> Simulated:
        if isinstance(self.classes, tuple) and len(set(self.classes)) < len(self.classes):
            raise ValueError("a class stands twice in classes")
        return self

    def domain_of(self, split: str) -> Domain:
        """How the clips of a split look."""
        return self.test_domain if split == "test" and self.test_domain is not None else self.domain
