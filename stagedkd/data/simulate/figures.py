"""A stick figure in action: angles of limbs as functions of time, a skeleton in space, drawn as shaded capsules.

Two angles in the world, not relative to its joint, give the direction of a limb: `flex`, forward from hanging down, and
`wide`, sideways. The lower foot is always on the ground, so that squatting and jumping need no special case.

Shape legend: B clips, T frames, H, W pixels. Angles are in radians, lengths are fractions of the figure's height.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stagedkd.data.simulate.base import Array, Body, Family, Scene
from stagedkd.data.simulate.slots import Slot

THIGH, SHIN, TORSO, NECK, ARM, FOREARM, HEAD = 0.245, 0.245, 0.30, 0.09, 0.17, 0.16, 0.07
HIPS, SHOULDERS = 0.05, 0.1  # half widths
SIDES = ("right", "left")
SKIN, SHIRT, TROUSERS = 0, 1, 2
_HZ = {  # repetitions of a motion in a second
    "walk": 0.9,
    "run": 1.5,
    "jump": 0.9,
    "jack": 0.9,
    "squat": 0.6,
    "wave1": 1.2,
    "wave2": 0.9,
    "bend": 0.5,
    "kick": 0.8,
    "punch": 1.0,
}
_FRONTAL = ("jack", "wave1", "wave2", "jump")


@dataclass
class Pose:
    """Angles (B, T) of every limb, lean of the torso, height above the ground, and distance moved forward."""

    zero: Array
    flex: dict[str, Array] = field(default_factory=dict[str, Array])
    wide: dict[str, Array] = field(default_factory=dict[str, Array])
    lean: Array | float = 0.0
    lift: Array | float = 0.0
    forward: Array | float = 0.0

    def angle(self, which: dict[str, Array], limb: str) -> Array:
        """Return the angle of a limb in `flex` or `wide`; zero if it has none."""
        return which.get(limb, self.zero)


def pose(scene: Scene, body: int) -> Pose:
    """Return the pose of a scene's figures at each time; a distractor does not move, its arms are spread a little."""

    def draw(slot: int) -> Array:
        return scene.draw(slot, body)

    if body:
        still = Pose(0 * scene.time)
        still.wide = {
            f"{side} {part}": 0.15 + 0.5 * draw(Slot.STILL_ARMS + i) + 0 * scene.time
            for i, side in enumerate(SIDES)
            for part in ("arm", "forearm")
        }
        return still
    reach = scene.data.amplitude * (0.85 + 0.3 * draw(Slot.REACH))
    pace = scene.data.speed * (0.8 + 0.4 * draw(Slot.TEMPO)) * scene.data.seconds
    merged = Pose(0 * scene.time)
    for name in np.unique(scene.labels).tolist():
        hz = _HZ.get(name, 0.0)
        beat = 2 * math.pi * (hz * pace * scene.time + draw(Slot.BEAT))
        late = 0.15 * (draw(Slot.PASSED) - 0.5)
        passed = np.clip(0.5 + pace * scene.time / 1.4 + late, 0, 1)  # the progress of a motion that is done once
        action = _ACTIONS[name](0 * scene.time, beat, passed, reach, pace * scene.time)
        _merge(merged, action, scene.is_any(name))
    return merged


def _merge(into: Pose, action: Pose, where: np.ndarray) -> None:
    """Set the pose of one class in the clips of that class."""
    for name in ("flex", "wide"):
        limbs: dict[str, Array] = getattr(into, name)
        for limb, angles in getattr(action, name).items():
            limbs[limb] = np.where(where, angles, limbs.get(limb, into.zero))
    for name in ("lean", "lift", "forward"):
        setattr(into, name, np.where(where, getattr(action, name), getattr(into, name)))


# ---------------------------------------------------------------- what the figure does


def _stride(zero: Array, beat: Array, swing: Array, knee: float, elbow: float, lean: float, way: Array) -> Pose:
    """Return the pose of walking or running."""
    result = Pose(zero, lean=lean + zero, forward=way)
    for side, turn in zip(SIDES, (0.0, math.pi), strict=True):
        thigh = swing * np.sin(beat + turn)
        bend = knee * (0.35 + 0.65 * np.maximum(0, np.cos(beat + turn)))
        result.flex[f"{side} thigh"], result.flex[f"{side} shin"] = thigh, thigh - bend * swing / 0.5
        arm = -0.9 * swing * np.sin(beat + turn)
        result.flex[f"{side} arm"], result.flex[f"{side} forearm"] = arm, arm + elbow
    return result


def _walk(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    return _stride(zero, beat, 0.45 * reach, 0.5, 0.25, 0.05, 0.3 * time * reach)


def _run(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    result = _stride(zero, beat, 0.75 * reach, 0.9, 1.5, 0.25, 0.45 * time * reach)
    result.lift = 0.04 * (1 + np.cos(2 * beat))
    return result


def _jump(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    up, down = np.maximum(0, np.sin(beat)), np.maximum(0, -np.sin(beat))
    result = Pose(zero, lift=0.16 * reach * up, lean=0.3 * reach * down)
    for side in SIDES:
        result.flex |= {f"{side} thigh": 0.8 * reach * down, f"{side} shin": -0.7 * reach * down}
        result.flex |= {f"{side} arm": -0.5 * down, f"{side} forearm": 0.2 + 0 * down}
        result.wide |= {f"{side} arm": 0.3 + 0.5 * up, f"{side} forearm": 0.3 + 0.5 * up}
    return result


def _jack(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    out = (1 - np.cos(beat)) / 2
    result = Pose(zero, lift=0.03 * np.sin(beat) ** 2)
    for side in SIDES:
        result.wide |= {f"{side} {part}": 0.05 + 0.45 * reach * out for part in ("thigh", "shin")}
        result.wide |= {f"{side} {part}": 0.15 + 2.6 * np.minimum(reach, 1.1) * out for part in ("arm", "forearm")}
    return result


def _squat(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    low = (1 - np.cos(beat)) / 2 * np.minimum(reach, 1.2)
    result = Pose(zero, lean=0.5 * low)
    for side in SIDES:
        result.flex |= {f"{side} thigh": 1.5 * low, f"{side} shin": -0.75 * low}
        result.flex |= {f"{side} {part}": 1.4 * low for part in ("arm", "forearm")}
    return result


def _wave1(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    result = Pose(zero)
    result.wide |= {"right arm": 2.0 + zero, "right forearm": 2.6 + 0.7 * reach * np.sin(beat)}
    result.wide |= {"left arm": 0.12 + zero, "left forearm": 0.08 + zero}
    return result


def _wave2(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    result = Pose(zero)
    for side in SIDES:
        result.wide |= {
            f"{side} arm": 1.7 + 0.7 * reach * np.sin(beat),
            f"{side} forearm": 1.9 + 0.9 * reach * np.sin(beat),
        }
    return result


def _bend(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    down = (1 - np.cos(beat)) / 2 * np.minimum(reach, 1.2)
    result = Pose(zero, lean=1.7 * down)
    for side in SIDES:
        result.flex |= {f"{side} thigh": 0.15 * down, f"{side} shin": -0.15 * down}
        result.flex |= {f"{side} {part}": 0.1 + 0.3 * down for part in ("arm", "forearm")}
    return result


def _kick(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    up = np.maximum(0, np.sin(beat)) ** 1.5
    chamber = np.maximum(0, np.sin(beat + 0.9))
    result = Pose(zero, lean=-0.3 * up)
    result.flex |= {"right thigh": 1.5 * reach * up, "right shin": 1.5 * reach * up - 1.2 * chamber * (1 - up)}
    for side, turn in zip(SIDES, (-1, 1), strict=True):
        result.flex |= {f"{side} arm": 0.4 + 0.5 * turn * up, f"{side} forearm": 1.6 + zero}
    return result


def _punch(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    result = Pose(zero, lean=0.1 + zero)
    for side, turn in zip(SIDES, (0.0, math.pi), strict=True):
        out = np.maximum(0, np.sin(beat + turn)) * np.minimum(reach, 1.1)
        result.flex |= {f"{side} arm": 0.1 + 1.4 * out, f"{side} forearm": 2.3 - 0.8 * out}
    step = {"right thigh": 0.3, "right shin": 0.1, "left thigh": -0.25, "left shin": -0.35}
    result.flex |= {limb: angle + zero for limb, angle in step.items()}
    return result


def _sit_down(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    low = passed * passed * (3 - 2 * passed) * np.minimum(reach, 1.05)
    result = Pose(zero, lean=2.0 * low * (1.05 - low), forward=-0.15 * low)
    for side in SIDES:
        result.flex |= {f"{side} thigh": 1.5 * low, f"{side} shin": -0.05 * low}
        result.flex |= {f"{side} arm": 0.5 * low, f"{side} forearm": 0.9 * low}
    return result


def _stand_up(zero: Array, beat: Array, passed: Array, reach: Array, time: Array) -> Pose:
    return _sit_down(zero, beat, 1 - passed, reach, time)


_ACTIONS = {
    "walk": _walk,
    "run": _run,
    "jump": _jump,
    "jack": _jack,
    "squat": _squat,
    "wave1": _wave1,
    "wave2": _wave2,
    "bend": _bend,
    "kick": _kick,
    "punch": _punch,
    "sit_down": _sit_down,
    "stand_up": _stand_up,
}


# ---------------------------------------------------------------- from angles to capsules

Point = tuple[Array, Array, Array]  # x to the right, y up, z to the viewer; fractions of the figure's height


def _limb(start: Point, length: float, flex: Array, wide: Array, side: float, yaw: Array) -> Point:
    """Return the end of a limb that is turned from hanging down forward by `flex` and sideways by `wide`."""
    forward, across, up = np.sin(flex) * np.cos(wide), side * np.sin(wide), -np.cos(flex) * np.cos(wide)
    return _move(start, length * forward, length * across, length * up, yaw)


def _move(start: Point, forward: Array, across: Array, up: Array, yaw: Array) -> Point:
    """Move a point. Forward is to the right at yaw 0 and to the viewer at a quarter turn."""
    x = forward * np.cos(yaw) + across * np.sin(yaw)
    z = forward * np.sin(yaw) - across * np.cos(yaw)
    return start[0] + x, start[1] + up, start[2] + z


def skeleton(scene: Scene, body: int) -> list[tuple[Point, Point, float, int]]:
    """Return the capsules from back to front: start, end, radius, colour."""
    stance = pose(scene, body)
    yaw = np.where(scene.is_any(*_FRONTAL), math.pi / 2, 0.25) + 0.2 * (scene.draw(Slot.YAW, body) - 0.5) + scene.view
    yaw = yaw + 0 * scene.time
    if body:
        yaw = 2 * math.pi * scene.draw(Slot.STILL_YAW, body) + 0 * scene.time
    legs = [_leg_height(stance, side) for side in SIDES]
    middle: Point = (stance.zero, np.maximum(*legs) + stance.lift, stance.zero)
    middle = _move(middle, stance.forward + stance.zero, stance.zero, stance.zero, yaw)
    lean = stance.lean + stance.zero
    neck = _move(middle, TORSO * np.sin(lean), stance.zero, TORSO * np.cos(lean), yaw)
    head = _move(neck, NECK * np.sin(lean), stance.zero, NECK * np.cos(lean), yaw)
    limbs = {side: _limbs(stance, side, middle, neck, yaw) for side in SIDES}
    behind = np.cos(yaw) > 0  # true: the right side is nearer to the viewer than the left
    near = {part: _choose(behind, limbs["left"][part], limbs["right"][part]) for part in limbs["left"]}
    far = {part: _choose(behind, limbs["right"][part], limbs["left"][part]) for part in limbs["left"]}
    width = scene.domain.line
    trunk = [(middle, neck, 0.062 * width, SHIRT), (head, head, HEAD, SKIN)]
    return [*_capsules(far, width), *trunk, *_capsules(near, width)]


def _leg_height(stance: Pose, side: str) -> Array:
    """Return the height of the hip above the foot."""
    parts = ((f"{side} thigh", THIGH), (f"{side} shin", SHIN))
    return sum(
        (
            length * np.cos(stance.angle(stance.flex, limb)) * np.cos(stance.angle(stance.wide, limb))
            for limb, length in parts
        ),
        stance.zero,
    )


def _limbs(stance: Pose, side: str, middle: Point, neck: Point, yaw: Array) -> dict[str, Point]:
    """Return the joints of one side."""
    out = 1.0 if side == "left" else -1.0

    def end_of(start: Point, limb: str, length: float) -> Point:
        name = f"{side} {limb}"
        return _limb(start, length, stance.angle(stance.flex, name), stance.angle(stance.wide, name), out, yaw)

    zero = stance.zero
    hip = _move(middle, zero, out * HIPS + zero, zero, yaw)
    shoulder = _move(neck, zero, out * SHOULDERS + zero, zero - 0.02, yaw)
    knee, elbow = end_of(hip, "thigh", THIGH), end_of(shoulder, "arm", ARM)
    return {
        "hip": hip,
        "knee": knee,
        "foot": end_of(knee, "shin", SHIN),
        "shoulder": shoulder,
        "elbow": elbow,
        "hand": end_of(elbow, "forearm", FOREARM),
    }


def _choose(where: np.ndarray, one: Point, other: Point) -> Point:
    """Return `one` where the condition holds, else `other`."""
    x, y, z = (np.where(where, a, b) for a, b in zip(one, other, strict=True))
    return x, y, z


def _capsules(limbs: dict[str, Point], width: float) -> list[tuple[Point, Point, float, int]]:
    """Return the capsules of one side."""
    return [
        (limbs["hip"], limbs["knee"], 0.042 * width, TROUSERS),
        (limbs["knee"], limbs["foot"], 0.034 * width, TROUSERS),
        (limbs["shoulder"], limbs["elbow"], 0.032 * width, SHIRT),
        (limbs["elbow"], limbs["hand"], 0.026 * width, SKIN),
    ]


def bodies(scene: Scene, index: int) -> Iterator[Body]:
    """Yield the figure's capsules, from back to front."""
    height, middle, ground = (scene.draw(slot, index) for slot in (Slot.HEIGHT, Slot.MIDDLE, Slot.GROUND))
    if index == 0:
        height, middle, ground = 0.66 + 0.12 * height, 0.5 + 0.12 * (middle - 0.5), 0.9 + 0.06 * (ground - 0.5)
    else:
        height, ground = 0.3 + 0.2 * height, 0.6 + 0.3 * ground
    facing = np.where(scene.draw(Slot.FACING, index) < 0.5, -1.0, 1.0)
    for start, end, radius, colour in skeleton(scene, index):
        ends = [
            scene.to_device(values)
            for point in (start, end)
            for values in (middle + facing * height * point[0], ground - height * point[1])
        ]
        yield _capsule(scene, ends, scene.to_device(radius * height), colour)


def _capsule(scene: Scene, ends: Sequence[Tensor], radius: Tensor, colour: int) -> Body:
    """Paint a shaded capsule: dark at its edges, and striped if it is a shirt."""
    ax, ay, bx, by = ends
    px, py, dx, dy = scene.x - ax, scene.y - ay, bx - ax, by - ay
    square = dx * dx + dy * dy + 1e-12
    along = ((px * dx + py * dy) / square).clamp(0, 1)
    rx, ry = px - dx * along, py - dy * along
    distance = (rx * rx + ry * ry).sqrt()
    round_ = (1 - ((distance / radius) ** 2).clamp(0, 1)).sqrt()
    light = (0.5 - 0.5 * (rx + ry) / radius).clamp(0, 1)  # the light comes from above, on the left
    shade = 0.55 + 0.25 * round_ + 0.2 * light
    length = square.sqrt()
    if colour == SHIRT:
        shade = shade * (1 - 0.25 * (torch.remainder(along * length * 14, 1.0) > 0.5).float())
    cover = (0.5 - (distance - radius) * scene.size).clamp(0, 1)
    return Body(cover, shade, *scene.grain(px - dx / 2, py - dy / 2), colour)


FAMILY = Family(bodies)
