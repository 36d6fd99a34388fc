"""Section `data` of simulated sets: clips rendered from (seed, index), with settings for how hard they are."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, Tag, model_validator

from stagedkd.spec.schema.base import Count, Fraction, Section, Seed, Word, by_form

Classes: TypeAlias = Annotated[
    Annotated[int, Field(ge=2, le=12), Tag("number")] | Annotated[tuple[Word, ...], Field(min_length=2), Tag("list")],
    by_form("a number of classes or a list of their names"),
]


class Domain(Section):
    """The appearance of simulated clips, apart from their motion. It can differ between training and test."""

    palette: Literal["dark", "light", "grey", "any"] = "dark"
    """Colours. dark: bright bodies on a dark background. light: dark bodies on a light background. grey: both grey.
    any: any colours."""
    background: Literal["plain", "gradient", "checker", "clutter"] = "plain"
    """Background. plain: one colour. gradient: from one colour to another. checker: squares. clutter: boxes that do not
    move."""
    blur: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Standard deviation of a Gaussian blur, as a fraction of the frame size."""
    line: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Relative thickness of limbs and bodies."""
    fps: Annotated[float, Field(gt=0, le=1000)] = 25.0
    """Frames per second of the simulated camera. If a clip needs more, frames repeat."""
    viewpoint: Annotated[float, Field(ge=0, le=80)] = 0.0
    """Largest angle in degrees between the camera and its usual direction, to either side."""


class Simulated(Section):
    """Simulated clips, rendered from (seed, index) on the device. `shapes`: one moving shape; the classes are motions
    in pairs of opposite time direction, so that a single frame does not reveal the class. `figures`: a stick figure
    that performs actions."""

    kind: Literal["shapes", "figures"]
    """The family of simulated clips."""
    classes: Classes = 12
    """Number of classes, which takes the first ones of the family, or the names of the classes."""
    train: Count = 512
    """Number of training clips."""
    val: Count = 160
    """Number of validation clips."""
    test: Count = 160
    """Number of test clips."""
    seed: Seed = 0
    """Seed of the rendered clips."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    """Length of a clip in seconds, whatever its number of frames."""
    speed: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Relative speed of the motion."""
    amplitude: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Relative extent of the motion."""
    noise: Fraction = 0.1
    """Largest value of the uniform pixel noise, in units of the pixel range."""
    contrast: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Relative contrast between body and background."""
    distractors: Annotated[int, Field(ge=0, le=8)] = 0
    """Number of bodies that do not move and carry no information about the class."""
    occlusion: Fraction = 0.0
    """Fraction of the frame's width that a fixed bar hides."""
    camera: Fraction = 0.0
    """Extent of the camera's drift and shake, as a fraction of the frame size."""
    texture: Literal["plain", "noise"] = "plain"
    """plain: plain colours. noise: body and background are random dots of the same kind, which only motion tells
    apart."""
    drop: Fraction = 0.0
    """Probability that a frame is lost and replaced by the one before it."""
    domain: Domain = Domain()
    """The appearance of the clips."""
    test_domain: Domain | None = None
    """The appearance of the clips of the test split. Unset: the same as that of the others."""

    @model_validator(mode="after")
    def _twice(self) -> Simulated:
        if isinstance(self.classes, tuple) and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes lists a class twice")
        return self

    def domain_of(self, split: str) -> Domain:
        """Return the appearance of the clips of a split."""
        return self.test_domain if split == "test" and self.test_domain is not None else self.domain
