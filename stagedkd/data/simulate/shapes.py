"""Moving shapes: motion classes in time-reversal pairs, so that one frame tells nothing about the class.

Positions are uniform on a torus, sizes and angles uniform, for every class; only their course in time differs.
Parameters are drawn on the host by integer hash and rendered on the device, so CPU and GPU agree within 1/255.

Shape legend: B clips, C channels, T frames, H, W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import uniform
from stagedkd.spec.schema import Shapes

CLASSES = (
    "right", "left", "down", "up", "orbit_cw", "orbit_ccw", "spin_cw", "spin_ccw", "grow", "shrink",
    "diagonal_down", "diagonal_up",
)  # fmt: skip
_TRAVEL = {"right": (1, 0), "down": (0, 1), "diagonal_down": (0.75, 0.75)}
_SIZES = (0.13, 0.26)  # half extent, as a share of the frame


def label_of(index: npt.NDArray[np.int64], data: Shapes) -> npt.NDArray[np.int64]:
    """Class of each clip: balanced, and independent of everything that is drawn."""
    return index % data.classes


def render(index: npt.NDArray[np.int64], data: Shapes, frames: int, size: int, device: torch.device) -> Tensor:
    """Render clips.

    Args:
        index: (B,) clip numbers.
        frames, size: T, and H = W in pixels.
    Returns:
        uint8 (B, 3, T, H, W) on `device`.
    """
    courses = [_course(index, data, frames, body) for body in range(1 + data.distractors)]
    grid = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
    ground = _tensor(_colours(index, data, 0), device)[:, :, None, None, None]
    clip = ground.expand(-1, 3, frames, size, size)
    for body, course in enumerate(courses):
        x, y, half, angle, form = (_tensor(part, device) for part in course)
        cover = _coverage(x, y, half, angle, form, grid, size)[:, None]
        colour = _tensor(_colours(index, data, 1 + body), device)[:, :, None, None, None]
        clip = clip * (1 - cover) + colour * cover
    if data.noise:
        clip = clip + data.noise * _noise(index, data.seed, frames, size, device)
    return (clip.clamp(0, 1) * 255).round().to(torch.uint8)


def _tensor(values: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device)


def _colours(index: npt.NDArray[np.int64], data: Shapes, body: int) -> npt.NDArray[np.float64]:
    """(B, 3): the ground is dark, shapes are bright by `contrast`; distractors are as bright as the actor."""
    tint = np.stack([uniform(data.seed, index, 100 + 10 * body + c) for c in range(3)], 1)
    return 0.1 + 0.2 * tint if body == 0 else 0.2 + data.contrast * (0.4 + 0.4 * tint)


def _course(index: npt.NDArray[np.int64], data: Shapes, frames: int, body: int) -> tuple[npt.NDArray[np.float64], ...]:
    """x, y, half size, angle (each (B, T)) and form (B, 1); a distractor (body > 0) stands still."""

    def draw(slot: int) -> npt.NDArray[np.float64]:
        return uniform(data.seed, index, 1000 * (body + 1) + slot)[:, None]

    time = ((np.arange(frames) + 0.5) / frames - 0.5)[None]  # symmetric: reversing a class gives its pair
    label = label_of(index, data)[:, None]
    sign = np.where(label % 2 == 0, 1.0, -1.0)
    pace = data.speed * (0.7 + 0.6 * draw(0)) * sign * time if body == 0 else 0 * time + 0 * draw(0)
    kind = label // 2
    x, y, angle, phase = draw(1) + 0 * time, draw(2) + 0 * time, 2 * math.pi * draw(3) + 0 * time, draw(4) + 0 * time
    for number, name in ((0, "right"), (1, "down"), (5, "diagonal_down")):
        dx, dy = _TRAVEL[name]
        x, y = x + np.where(kind == number, dx * 0.6 * pace, 0), y + np.where(kind == number, dy * 0.6 * pace, 0)
    turn = 2 * math.pi * (draw(5) + 0.7 * pace)
    x, y = x + np.where(kind == 2, 0.2 * np.cos(turn), 0), y + np.where(kind == 2, 0.2 * np.sin(turn), 0)
    angle = angle + np.where(kind == 3, 2 * math.pi * 0.5 * pace, 0)
    phase = phase + np.where(kind == 4, 0.8 * pace, 0)
    half = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * (phase % 1.0)  # grows, jumps back, grows: sizes stay uniform
    return x, y, half, angle, np.floor(3 * draw(6))


def _coverage(x: Tensor, y: Tensor, half: Tensor, angle: Tensor, form: Tensor, grid: Tensor, size: int) -> Tensor:
    """Share of each pixel that a shape covers, (B, T, H, W), from a signed distance in pixels."""
    dx = torch.remainder(grid[None, None, None, :] - x[..., None, None] + 0.5, 1.0) - 0.5
    dy = torch.remainder(grid[None, None, :, None] - y[..., None, None] + 0.5, 1.0) - 0.5
    cos, sin, half = angle.cos()[..., None, None], angle.sin()[..., None, None], half[..., None, None]
    u, v = (cos * dx + sin * dy) / half, (cos * dy - sin * dx) / half
    bar = torch.maximum(u.abs() - 1, v.abs() - 0.35)
    wedge = torch.maximum(-v - 0.6, 0.9 * u.abs() + 0.45 * v - 0.45)
    bowl = torch.maximum((u * u + v * v).sqrt() - 1, -v)
    form = form[..., None, None]
    distance = torch.where(form == 0, bar, torch.where(form == 1, wedge, bowl)) * half * size
    return (0.5 - distance).clamp(0, 1)


def _noise(index: npt.NDArray[np.int64], seed: int, frames: int, size: int, device: torch.device) -> Tensor:
    """Grey noise in [-1, 1), (B, 1, T, H, W), from a 32-bit integer hash held in int64, equal on every device."""
    base = torch.from_numpy((index * 2654435761 + seed * 40503) & 0xFFFFFFFF).to(device)
    cells = torch.arange(frames * size * size, device=device, dtype=torch.int64)
    x = (base[:, None] ^ (cells * 0x9E3779B1 & 0xFFFFFFFF)[None]) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x.to(torch.float32) / 2.0**31 - 1.0).view(len(index), 1, frames, size, size)
