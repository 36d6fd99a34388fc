"""The common part of all simulated families: camera, background, distractors, occlusion, texture, lost frames, noise.

A family gives the places of its bodies; this file paints them. Random numbers, drawn by integer hash, and trigonometry
are computed on the host; the device only adds, multiplies, divides and takes roots, so that any batch on any device
gives the same pixels (within 1/255).

Shape legend: B clips, 3 = RGB, T frames, H, W pixels. Lengths are fractions of the frame, y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagedkd.data.draws import uniform
from stagedkd.data.simulate.slots import Slot
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Domain, Simulated

Array = npt.NDArray[np.float64]
CHUNK = 1 << 22  # pixels painted at once
PALETTES = {  # of each channel: least value and range of the ground, least value and range of bodies
    "dark": (0.1, 0.2, 0.6, 0.4),
    "light": (0.75, 0.2, 0.05, 0.3),
    "grey": (0.35, 0.1, 0.7, 0.1),
    "any": (0.0, 1.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Body:
    """One painted part of a body.

    cover: (B, T, H, W), the fraction of each pixel that it covers. shade: its brightness (1: its plain colour). u, v:
    coordinates on it, in pixels, so that its texture moves with it. colour: which of the body's colours it has.
    """

    cover: Tensor
    shade: Tensor | float
    u: Tensor
    v: Tensor
    colour: int = 0


@dataclass(frozen=True)
class Scene:
    """The clips to be painted.

    labels: (B,), class names. time: (B, T), from -0.5 to 0.5 of the clip. view: (B, 1), the camera's angle in radians.
    x: (B, T, 1, W) and y: (B, T, H, 1), world coordinates on the device, both (B, T, H, W) under `texture: noise`.
    """

    clip_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.str_]
    time: Array
    view: Array
    data: Simulated
    domain: Domain
    size: int
    x: Tensor
    y: Tensor

    def draw(self, slot: int, body: int = 0) -> Array:
        """Draw a uniform number in [0, 1) for each clip, (B, 1), named by slot and body."""
        return uniform(self.data.seed, self.clip_ids, 1000 * (body + 1) + slot)[:, None]

    def is_any(self, *names: str) -> npt.NDArray[np.bool_]:
        """Return whether each clip's class is one of these, (B, 1)."""
        return np.isin(self.labels, names)[:, None]

    def to_device(self, values: Array) -> Tensor:
        """Return values as float32 on the device; (B, T) becomes (B, T, 1, 1)."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.x.device, non_blocking=True)
        return tensor[..., None, None] if tensor.ndim == 2 else tensor

    def grain(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates in pixels along the grain of the background's dots, so that a body's look the same."""
        angle = 2 * math.pi * self.draw(Slot.GRAIN)
        cos, sin = self.to_device(np.cos(angle)), self.to_device(np.sin(angle))
        return (cos * x + sin * y) * self.size, (cos * y - sin * x) * self.size


@dataclass(frozen=True)
class Family:
    """A family of clips. `bodies(scene, index)` yields the bodies of the actor (index 0) or of a distractor that does
    not move (1, 2, ...), from back to front. Another family needs one such file, an entry in `FAMILIES` and its classes
    in spec/families.py."""

    bodies: Callable[[Scene, int], Iterator[Body]]


def label_of(clip_ids: npt.NDArray[np.int64], data: Simulated) -> npt.NDArray[np.int64]:
    """Return the class of each clip: balanced, and independent of all random numbers."""
    return clip_ids % len(class_names(data))


def paint(
    family: Family,
    clip_ids: npt.NDArray[np.int64],
    data: Simulated,
    domain: Domain,
    frames: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """Paint clips: uint8 (B, 3, T, H, W) on `device`."""
    step = max(1, CHUNK // (frames * size * size))
    parts = [clip_ids[i : i + step] for i in range(0, len(clip_ids), step)]
    return torch.cat([_paint(family, part, data, domain, frames, size, device) for part in parts])


def _paint(
    family: Family,
    clip_ids: npt.NDArray[np.int64],
    data: Simulated,
    domain: Domain,
    frames: int,
    size: int,
    device: torch.device,
) -> Tensor:
    scene = _scene(clip_ids, data, domain, frames, size, device)
    ground = _background(scene)
    picture = ground
    for index in [*range(1, 1 + data.distractors), 0]:
        for part, body in enumerate(family.bodies(scene, index)):
            if data.texture == "noise":
                colour, cover = _dots(scene, body.u, body.v, 7 + 50 * index + part), (body.cover > 0.5).float()
            else:
                colour, cover = _colour(scene, body, index), body.cover
            picture = picture * (1 - cover[:, None]) + colour * cover[:, None]
    if data.occlusion:
        picture = _occlude(scene, picture)
    picture = picture.expand(-1, 3, frames, size, size)
    if domain.blur:
        picture = _blur(picture, domain.blur * size)
    if data.noise:
        picture = picture + data.noise * _noise(clip_ids, data.seed, frames, size, device)
    picture = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return _drop_frames(picture, clip_ids, data)


def _scene(
    clip_ids: npt.NDArray[np.int64], data: Simulated, domain: Domain, frames: int, size: int, device: torch.device
) -> Scene:
    """Draw the scene of the clips: times, camera and world coordinates."""
    names = np.array(class_names(data))[label_of(clip_ids, data)]
    time = ((np.arange(frames) + 0.5) / frames)[None] + np.zeros((len(clip_ids), 1))
    ticks = domain.fps * data.seconds  # pictures that the camera takes in a clip
    if ticks < frames:
        time = (np.floor(time * ticks) + 0.5) / ticks
    time = time - 0.5  # symmetric: reversing a clip gives its pair
    shake = [uniform(data.seed, clip_ids, Slot.SHAKES + i)[:, None] for i in range(8)]
    view = np.radians(domain.viewpoint) * (2 * uniform(data.seed, clip_ids, Slot.VIEWPOINT)[:, None] - 1)
    drift_x = (2 * shake[0] - 1) * time + 0.15 * np.sin(2 * math.pi * (shake[1] + (1 + 3 * shake[2]) * time))
    drift_y = (2 * shake[4] - 1) * time + 0.15 * np.sin(2 * math.pi * (shake[5] + (1 + 3 * shake[6]) * time))
    grid = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size

    def moved(drift: Array) -> Tensor:
        return torch.from_numpy((data.camera * drift).astype(np.float32)).to(device, non_blocking=True)[..., None, None]

    x, y = grid + moved(drift_x), grid[:, None] + moved(drift_y)
    scene = Scene(clip_ids, names, time, view, data, domain, size, x, y)
    return _snap_to_dots(scene) if data.texture == "noise" else scene


def _snap_to_dots(scene: Scene) -> Scene:
    """Move the coordinates of the scene to the middles of the background's dots. Bodies then consist of whole dots with
    independent values, so that a single frame is only noise."""
    u, v = scene.grain(scene.x + 0 * scene.y, scene.y + 0 * scene.x)
    cell = _cell(scene)
    u, v = (torch.floor(u / cell) + 0.5) * cell, (torch.floor(v / cell) + 0.5) * cell
    angle = 2 * math.pi * scene.draw(Slot.GRAIN)
    cos, sin = scene.to_device(np.cos(angle)), scene.to_device(np.sin(angle))
    return replace(scene, x=(cos * u - sin * v) / scene.size, y=(sin * u + cos * v) / scene.size)


def _cell(scene: Scene) -> float:
    """Return the side of a dot in pixels."""
    return max(1.0, 0.04 * scene.size)


def _tint(scene: Scene, slot: int, start: float, spread: float) -> Tensor:
    """Draw a colour for each clip, (B, 3, 1, 1, 1)."""
    grey = scene.domain.palette == "grey"
    parts = [uniform(scene.data.seed, scene.clip_ids, slot + (0 if grey else c)) for c in range(3)]
    return scene.to_device(start + spread * np.stack(parts, 1))[:, :, None]


def _background(scene: Scene) -> Tensor:
    """Paint the background, (B, 1 or 3, T or 1, H, W)."""
    start, spread, _, _ = PALETTES[scene.domain.palette]
    x, y = scene.x + 0 * scene.y, scene.y + 0 * scene.x
    if scene.data.texture == "noise":
        return _dots(scene, *scene.grain(x, y), 3)
    ground = _tint(scene, Slot.GROUND_TINTS, start, spread)
    kind = scene.domain.background
    if kind == "plain":
        return ground.expand(-1, 3, 1, scene.size, scene.size)
    other = _tint(scene, Slot.OTHER_TINTS, start, spread)
    if kind == "gradient":
        angle = 2 * math.pi * scene.draw(Slot.GRADIENT)
        cos, sin = scene.to_device(np.cos(angle)), scene.to_device(np.sin(angle))
        mix = (0.5 + 0.5 * (cos * (x - 0.5) + sin * (y - 0.5)) / 0.71).clamp(0, 1)
    elif kind == "checker":
        cell = scene.to_device(0.08 + 0.12 * scene.draw(Slot.CHECKER))
        mix = torch.remainder(torch.floor(x / cell) + torch.floor(y / cell), 2.0)
    else:
        mix = torch.zeros_like(x)
        for box in range(6):
            left, top, wide, tall = (scene.to_device(scene.draw(Slot.BOXES + 4 * box + i)) for i in range(4))
            inside = ((x - left).abs() < 0.05 + 0.1 * wide) & ((y - top).abs() < 0.05 + 0.15 * tall)
            mix = torch.where(inside, 0.3 + 0.7 * wide + 0 * x, mix)
    return ground * (1 - mix[:, None]) + other * mix[:, None]


def _colour(scene: Scene, body: Body, index: int) -> Tensor:
    """Return the colour of a body, (B, 3, T or 1, H or 1, W or 1), as far from the ground as the contrast says."""
    low, wide, start, spread = PALETTES[scene.domain.palette]
    near = low + wide / 2
    tint = _tint(scene, Slot.BODY_TINTS + 10 * index + 3 * body.colour, start, spread)
    shade = body.shade[:, None] if isinstance(body.shade, Tensor) else body.shade
    return near + scene.data.contrast * (tint * shade - near)


def _dots(scene: Scene, u: Tensor, v: Tensor, salt: int) -> Tensor:
    """Paint random dots at coordinates in pixels, (B, 1, T, H, W) in 0..1; all bodies have the same kind of dots."""
    cell = _cell(scene)
    base = torch.from_numpy((scene.clip_ids * 2654435761 + scene.data.seed * 40503 + salt * 977) & 0xFFFFFFFF)
    base = base.to(u.device, non_blocking=True)[:, None, None, None]
    column, row = torch.floor(u / cell).to(torch.int64), torch.floor(v / cell).to(torch.int64)
    mixed = _hash((base ^ (column * 0x9E3779B1) ^ (row * 0x85EBCA6B)) & 0xFFFFFFFF)
    return (0.1 + 0.8 * mixed.to(torch.float32) / 2.0**32)[:, None]


def _hash(x: Tensor) -> Tensor:
    """Return a 32-bit integer hash in int64, equal on every device."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _occlude(scene: Scene, picture: Tensor) -> Tensor:
    """Paint a bar that does not move in front of everything."""
    wide = scene.data.occlusion
    middle = scene.to_device(wide / 2 + (1 - wide) * scene.draw(Slot.BAR))
    cover = (0.5 - ((scene.x - middle).abs() - wide / 2) * scene.size).clamp(0, 1) + 0 * scene.y
    return picture * (1 - cover[:, None]) + _tint(scene, Slot.BAR_TINTS, 0.2, 0.5) * cover[:, None]


def _blur(picture: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian, as a sum of shifted pictures, so that the result does not depend on the batch."""
    reach = max(1, math.ceil(2.5 * sigma))
    weights = [math.exp(-0.5 * (k / max(sigma, 1e-6)) ** 2) for k in range(-reach, reach + 1)]
    for axis in (-1, -2):
        length = picture.shape[axis]
        places = torch.arange(length, device=picture.device)
        shifted = [
            w * picture.index_select(axis, (places + k).clamp(0, length - 1))
            for k, w in zip(range(-reach, reach + 1), weights, strict=True)
        ]
        total = shifted[0]
        for part in shifted[1:]:
            total = total + part
        picture = total / sum(weights)
    return picture


def _noise(clip_ids: npt.NDArray[np.int64], seed: int, frames: int, size: int, device: torch.device) -> Tensor:
    """Return grey noise in [-1, 1), (B, 1, T, H, W)."""
    base = torch.from_numpy((clip_ids * 2654435761 + seed * 40503) & 0xFFFFFFFF).to(device, non_blocking=True)
    cells = torch.arange(frames * size * size, device=device, dtype=torch.int64)
    mixed = _hash((base[:, None] ^ (cells * 0x9E3779B1 & 0xFFFFFFFF)[None]) & 0xFFFFFFFF)
    return (mixed.to(torch.float32) / 2.0**31 - 1.0).view(len(clip_ids), 1, frames, size, size)


def _drop_frames(picture: Tensor, clip_ids: npt.NDArray[np.int64], data: Simulated) -> Tensor:
    """Replace each lost frame by the one before it."""
    if not data.drop:
        return picture
    frames = picture.shape[2]
    lost = uniform(data.seed, clip_ids[:, None], Slot.LOST, np.arange(frames)[None]) < data.drop
    lost[:, 0] = False
    source = np.maximum.accumulate(np.where(lost, 0, np.arange(frames)), axis=1)
    places = torch.from_numpy(source).to(picture.device, non_blocking=True)[:, None, :, None, None]
    return picture.gather(2, places.expand_as(picture))
