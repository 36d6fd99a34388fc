"""The families of simulated clips as plain data: their classes, and which classes are mirror images of each other."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import get_args

from stagedkd.spec.schema import Simulated

FAMILIES: dict[str, tuple[str, ...]] = {
    "shapes": (  # in pairs; each class of a pair is the other one in reverse time
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
    """Return the classes of a simulated set in the order of their ids: those it names, or the first n of its family."""
    if isinstance(data.classes, tuple):
        return data.classes
    return FAMILIES[data.kind][: data.classes]


@lru_cache(maxsize=256)
def mirror_pairs(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of classes that a mirror swaps, by name: left and right, clockwise and counterclockwise."""
    by_words = {_words(name): name for name in names}
    pairs: list[tuple[str, str]] = []
    for name in names:
        for one, other in _SIDES:
            swapped = tuple(other if word == one else word for word in _words(name))
            if swapped != _words(name) and swapped in by_words:
                pairs.append((name, by_words[swapped]))
    return tuple(dict.fromkeys(pairs))


def _words(name: str) -> tuple[str, ...]:
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return tuple(re.findall(r"[a-z]+|\d+", split.lower()))
