"""Moving shapes: motion classes in time-reversal pairs, so that one frame does not tell the class.

Positions are uniform on a torus, sizes and angles uniform, for every class; only their course in time differs.

Shape legend: B clips, T frames, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from stagedkd.data.simulate.base import Array, Body, Family, Scene
from stagedkd.data.simulate.slots import Slot

_TRAVEL = {("right", "left"): (1.0, 0.0), ("down", "up"): (0.0, 1.0), ("diagonal_down", "diagonal_up"): (0.75, 0.75)}
_BACKWARDS = ("left", "up", "orbit_ccw", "spin_ccw", "shrink", "diagonal_up")
_SIZES = (0.13, 0.26)  # half extent, as a fraction of the frame


def course(scene: Scene, body: int) -> tuple[Array, Array, Array, Array]:
    """Return x, y, half size and angle, (B, T) each; a distractor (body > 0) does not move."""

    def draw(slot: int) -> Array:
        return scene.draw(slot, body)

    sign = np.where(scene.is_any(*_BACKWARDS), -1.0, 1.0)
    pace = scene.data.speed * (0.7 + 0.6 * draw(Slot.PACE)) * sign * scene.time if body == 0 else 0 * scene.time
    reach = scene.data.amplitude
    x, y, phase = (draw(slot) + 0 * pace for slot in (Slot.X, Slot.Y, Slot.SIZE))
    angle = 2 * math.pi * draw(Slot.ANGLE) + 0 * pace
    flat = np.cos(scene.view)  # seen from the side, horizontal distances are shorter
    for names, (dx, dy) in _TRAVEL.items():
        moves = scene.is_any(*names)
        x = x + np.where(moves, flat * dx * 0.6 * reach * pace, 0)
        y = y + np.where(moves, dy * 0.6 * reach * pace, 0)
    turn = 2 * math.pi * (draw(Slot.TURN) + 0.7 * pace)
    orbits = scene.is_any("orbit_cw", "orbit_ccw")
    x = x + np.where(orbits, flat * 0.2 * reach * np.cos(turn), 0)
    y = y + np.where(orbits, 0.2 * reach * np.sin(turn), 0)
    angle = angle + np.where(scene.is_any("spin_cw", "spin_ccw"), math.pi * reach * pace, 0)
    phase = phase + np.where(scene.is_any("grow", "shrink"), 0.8 * reach * pace, 0)
    half = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * (phase % 1.0)  # grows, jumps back, grows: sizes stay uniform
    return x, y, half * scene.domain.line, angle


def bodies(scene: Scene, index: int) -> Iterator[Body]:
    """Yield one shape: a bar, a wedge or a bowl."""
    x, y, half, angle = course(scene, index)
    form = scene.to_device(np.floor(3 * scene.draw(Slot.FORM, index)))
    at_x, at_y, half_ = scene.to_device(x), scene.to_device(y), scene.to_device(half)
    cos, sin = scene.to_device(np.cos(angle)), scene.to_device(np.sin(angle))
    dx = (torch.remainder(scene.x - at_x + 0.5, 1.0) - 0.5) / scene.to_device(np.cos(scene.view))
    dy = torch.remainder(scene.y - at_y + 0.5, 1.0) - 0.5
    u, v = (cos * dx + sin * dy) / half_, (cos * dy - sin * dx) / half_
    bar = torch.maximum(u.abs() - 1, v.abs() - 0.35)
    wedge = torch.maximum(-v - 0.6, 0.9 * u.abs() + 0.45 * v - 0.45)
    bowl = torch.maximum((u * u + v * v).sqrt() - 1, -v)
    distance = torch.where(form == 0, bar, torch.where(form == 1, wedge, bowl)) * half_ * scene.size
    scale = 0.2 * scene.size  # a body's texture grows with it
    yield Body((0.5 - distance).clamp(0, 1), 1.0, u * scale, v * scale)


FAMILY = Family(bodies)
