"""The simulated families as plain data: their classes, and which of these are each other's mirror image."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import get_args

from stagedkd.spec.schema import Simulated

FAMILIES: dict[str, tuple[str, ...]] = {
    "shapes": (  # in pairs that are each other's time reversal
        "right",
        "left",
        "down",
        "up",
        "orbit_cw",
        "orbit_ccw",
        "spin_cw",
        "spin_ccw",
        "grow",
        "shrink",
        "diagonal_down",
        "diagonal_up",
    ),
    "figures": (
        "walk",
        "run",
        "jump",
        "jack",
        "squat",
        "wave1",
        "wave2",
        "bend",
        "kick",
        "punch",
        "sit_down",
        "stand_up",
    ),
}
if FAMILIES.keys() != {*get_args(Simulated.model_fields["kind"].annotation)}:
    raise ImportError("the families of FAMILIES are not those of Simulated.kind")
_SIDES = (("left", "right"), ("ccw", "cw"), ("anticlockwise", "clockwise"), ("counterclockwise", "clockwise"))


def class_names(data: Simulated) -> tuple[str, ...]:
    """The classes of a simulated set in the order of their ids: those that it names, or the first n of its family."""
    if isinstance(data.classes, tuple):
        return data.classes
    return FAMILIES[data.kind][: data.classes]


@lru_cache(maxsize=256)
def mirror_pairs(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Classes that a mirror turns into each other, by their names: left and right, clockwise and counterclockwise."""
    there = {_words(name): name for name in names}
    found: list[tuple[str, str]] = []
    for name in names:
        for one, other in _SIDES:
            swapped = tuple(other if word == one else word for word in _words(name))
            if swapped != _words(name) and swapped in there:
                found.append((name, there[swapped]))
    return tuple(dict.fromkeys(found))


def _words(name: str) -> tuple[str, ...]:
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[a-z]+|\d+", split.lower()))
