"""What all simulated families share: camera, background, distractors, occlusion, texture, lost frames, noise.

A family says where its bodies are; this file paints them. Everything is drawn on the host by integer hash, trigonometry
included; the device adds, multiplies, divides and takes roots, so that any batch on any device gives the same pixels
(within 1/255).

Shape legend: B clips, 3 = RGB, T frames, H, W pixels. Lengths are shares of the frame, y points down.
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
PALETTES = {  # ground from, ground spread, body from, body spread; of each channel
    "dark": (0.1, 0.2, 0.6, 0.4),
    "light": (0.75, 0.2, 0.05, 0.3),
    "grey": (0.35, 0.1, 0.7, 0.1),
    "any": (0.0, 1.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Body:
    """One painted part. `cover` (B, T, H, W) is the share of each pixel that it covers, `shade` its brightness (1: its
    colour), `u`, `v` the coordinates on it, in pixels, by which its texture moves with it."""

    cover: Tensor
    shade: Tensor | float
    u: Tensor
    v: Tensor
    colour: int = 0


@dataclass(frozen=True)
class Scene:
    """The clips to be painted. `labels` (B,) are class names, `time` (B, T) runs from -0.5 to 0.5 of the clip, `view`
    (B, 1) is the camera's angle in radians; `x` (B, T, 1, W) and `y` (B, T, H, 1) are world coordinates on the device,
    (B, T, H, W) under `texture: noise`."""

    index: npt.NDArray[np.int64]
    labels: npt.NDArray[np.str_]
    time: Array
    view: Array
    data: Simulated
    domain: Domain
    size: int
    x: Tensor
    y: Tensor

    def draw(self, slot: int, body: int = 0) -> Array:
        """Uniform in [0, 1), (B, 1), named by slot and body."""
        return uniform(self.data.seed, self.index, 1000 * (body + 1) + slot)[:, None]

    def is_any(self, *names: str) -> npt.NDArray[np.bool_]:
        """Whether a clip's class is one of these, (B, 1)."""
        return np.isin(self.labels, names)[:, None]

    def to_device(self, values: Array) -> Tensor:
        """float32 on the device, (B, T) as (B, T, 1, 1)."""
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.x.device)
        return tensor[..., None, None] if tensor.ndim == 2 else tensor

    def grain(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates in pixels along the grain of the background's dots, so that a body's look no different."""
        angle = 2 * math.pi * self.draw(Slot.GRAIN)
        cos, sin = self.to_device(np.cos(angle)), self.to_device(np.sin(angle))
        return (cos * x + sin * y) * self.size, (cos * y - sin * x) * self.size


@dataclass(frozen=True)
class Family:
    """A family of clips: the bodies of an actor (0) or of a distractor that stands still (1, 2, ...), from the back to
    the front. A third family is one such file, its entry in `FAMILIES` and its classes in spec/families.py."""

    bodies: Callable[[Scene, int], Iterator[Body]]


def label_of(index: npt.NDArray[np.int64], data: Simulated) -> npt.NDArray[np.int64]:
    """Class of each clip: balanced, and independent of everything that is drawn."""
    return index % len(class_names(data))


def paint(
    family: Family,
    index: npt.NDArray[np.int64],
    data: Simulated,
    domain: Domain,
    frames: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """uint8 (B, 3, T, H, W) on `device`."""
    step = max(1, CHUNK // (frames * size * size))
    parts = [index[i : i + step] for i in range(0, len(index), step)]
    return torch.cat([_paint(family, part, data, domain, frames, size, device) for part in parts])


def _paint(
    family: Family,
    index: npt.NDArray[np.int64],
    data: Simulated,
    domain: Domain,
    frames: int,
    size: int,
    device: torch.device,
) -> Tensor:
    scene = _scene(index, data, domain, frames, size, device)
    ground = _background(scene)
    picture = ground
    for number in [*range(1, 1 + data.distractors), 0]:
        for part, body in enumerate(family.bodies(scene, number)):
            if data.texture == "noise":
                colour, cover = _dots(scene, body.u, body.v, 7 + 50 * number + part), (body.cover > 0.5).float()
            else:
                colour, cover = _colour(scene, body, number), body.cover
            picture = picture * (1 - cover[:, None]) + colour * cover[:, None]
    if data.occlusion:
        picture = _occluded(scene, picture)
    picture = picture.expand(-1, 3, frames, size, size)
    if domain.blur:
        picture = _blurred(picture, domain.blur * size)
    if data.noise:
        picture = picture + data.noise * _noise(index, data.seed, frames, size, device)
    picture = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    return _dropped(picture, index, data)


def _scene(
    index: npt.NDArray[np.int64], data: Simulated, domain: Domain, frames: int, size: int, device: torch.device
) -> Scene:
    names = np.array(class_names(data))[label_of(index, data)]
    time = ((np.arange(frames) + 0.5) / frames)[None] + np.zeros((len(index), 1))
    ticks = domain.fps * data.seconds  # pictures that the camera takes in a clip
    if ticks < frames:
        time = (np.floor(time * ticks) + 0.5) / ticks
    time = time - 0.5  # symmetric: reversing a clip gives its pair
    shake = [uniform(data.seed, index, Slot.SHAKES + i)[:, None] for i in range(8)]
    view = np.radians(domain.viewpoint) * (2 * uniform(data.seed, index, Slot.VIEWPOINT)[:, None] - 1)
    drift_x = (2 * shake[0] - 1) * time + 0.15 * np.sin(2 * math.pi * (shake[1] + (1 + 3 * shake[2]) * time))
    drift_y = (2 * shake[4] - 1) * time + 0.15 * np.sin(2 * math.pi * (shake[5] + (1 + 3 * shake[6]) * time))
    grid = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size

    def moved(drift: Array) -> Tensor:
        return torch.from_numpy((data.camera * drift).astype(np.float32)).to(device)[..., None, None]

    x, y = grid + moved(drift_x), grid[:, None] + moved(drift_y)
    scene = Scene(index, names, time, view, data, domain, size, x, y)
    return _dotted(scene) if data.texture == "noise" else scene


def _dotted(scene: Scene) -> Scene:
    """The scene as seen at the middle of the background's dots: bodies are then made of whole dots, each of a value of
    its own, so that a single frame is noise and nothing else."""
    u, v = scene.grain(scene.x + 0 * scene.y, scene.y + 0 * scene.x)
    cell = _cell(scene)
    u, v = (torch.floor(u / cell) + 0.5) * cell, (torch.floor(v / cell) + 0.5) * cell
    angle = 2 * math.pi * scene.draw(Slot.GRAIN)
    cos, sin = scene.to_device(np.cos(angle)), scene.to_device(np.sin(angle))
    return replace(scene, x=(cos * u - sin * v) / scene.size, y=(sin * u + cos * v) / scene.size)


def _cell(scene: Scene) -> float:
    """The side of a dot in pixels."""
    return max(1.0, 0.04 * scene.size)


def _tint(scene: Scene, slot: int, start: float, spread: float) -> Tensor:
    """A colour of each clip, (B, 3, 1, 1, 1)."""
    grey = scene.domain.palette == "grey"
    parts = [uniform(scene.data.seed, scene.index, slot + (0 if grey else c)) for c in range(3)]
    return scene.to_device(start + spread * np.stack(parts, 1))[:, :, None]


def _background(scene: Scene) -> Tensor:
    """(B, 1 or 3, T or 1, H, W)."""
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
        share = (0.5 + 0.5 * (cos * (x - 0.5) + sin * (y - 0.5)) / 0.71).clamp(0, 1)
    elif kind == "checker":
        cell = scene.to_device(0.08 + 0.12 * scene.draw(Slot.CHECKER))
        share = torch.remainder(torch.floor(x / cell) + torch.floor(y / cell), 2.0)
    else:
        share = torch.zeros_like(x)
        for box in range(6):
            left, top, wide, tall = (scene.to_device(scene.draw(Slot.BOXES + 4 * box + i)) for i in range(4))
            inside = ((x - left).abs() < 0.05 + 0.1 * wide) & ((y - top).abs() < 0.05 + 0.15 * tall)
            share = torch.where(inside, 0.3 + 0.7 * wide + 0 * x, share)
    return ground * (1 - share[:, None]) + other * share[:, None]


def _colour(scene: Scene, body: Body, number: int) -> Tensor:
    """(B, 3, T or 1, H or 1, W or 1): ground colour and body colour, as far apart as the contrast says."""
    low, wide, start, spread = PALETTES[scene.domain.palette]
    near = low + wide / 2
    tint = _tint(scene, Slot.BODY_TINTS + 10 * number + 3 * body.colour, start, spread)
    shade = body.shade[:, None] if isinstance(body.shade, Tensor) else body.shade
    return near + scene.data.contrast * (tint * shade - near)


def _dots(scene: Scene, u: Tensor, v: Tensor, salt: int) -> Tensor:
    """Random dots at coordinates in pixels, (B, 1, T, H, W) in 0..1; the same kind of dots for every body."""
    cell = _cell(scene)
    base = torch.from_numpy((scene.index * 2654435761 + scene.data.seed * 40503 + salt * 977) & 0xFFFFFFFF)
    base = base.to(u.device)[:, None, None, None]
    column, row = torch.floor(u / cell).to(torch.int64), torch.floor(v / cell).to(torch.int64)
    mixed = _hashed((base ^ (column * 0x9E3779B1) ^ (row * 0x85EBCA6B)) & 0xFFFFFFFF)
    return (0.1 + 0.8 * mixed.to(torch.float32) / 2.0**32)[:, None]


def _hashed(x: Tensor) -> Tensor:
    """A 32-bit integer hash held in int64, equal on every device."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def _occluded(scene: Scene, picture: Tensor) -> Tensor:
    """A standing bar in front of everything."""
    wide = scene.data.occlusion
    middle = scene.to_device(wide / 2 + (1 - wide) * scene.draw(Slot.BAR))
    cover = (0.5 - ((scene.x - middle).abs() - wide / 2) * scene.size).clamp(0, 1) + 0 * scene.y
    return picture * (1 - cover[:, None]) + _tint(scene, Slot.BAR_TINTS, 0.2, 0.5) * cover[:, None]


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur as sums of shifted pictures, so that it does not depend on the batch."""
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


def _noise(index: npt.NDArray[np.int64], seed: int, frames: int, size: int, device: torch.device) -> Tensor:
    """Grey noise in [-1, 1), (B, 1, T, H, W)."""
    base = torch.from_numpy((index * 2654435761 + seed * 40503) & 0xFFFFFFFF).to(device)
    cells = torch.arange(frames * size * size, device=device, dtype=torch.int64)
    mixed = _hashed((base[:, None] ^ (cells * 0x9E3779B1 & 0xFFFFFFFF)[None]) & 0xFFFFFFFF)
    return (mixed.to(torch.float32) / 2.0**31 - 1.0).view(len(index), 1, frames, size, size)


def _dropped(picture: Tensor, index: npt.NDArray[np.int64], data: Simulated) -> Tensor:
    """Each lost frame shows the one before it."""
    if not data.drop:
        return picture
    frames = picture.shape[2]
    lost = uniform(data.seed, index[:, None], Slot.LOST, np.arange(frames)[None]) < data.drop
    lost[:, 0] = False
    shown = np.maximum.accumulate(np.where(lost, 0, np.arange(frames)), axis=1)
    places = torch.from_numpy(shown).to(picture.device)[:, None, :, None, None]
    return picture.gather(2, places.expand_as(picture))
