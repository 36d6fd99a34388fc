"""Modalities of one clip: RGB, and beside it optical flow, depth or infrared, by the names that tools give them.

RGB is read; the others are left out where they lie beside it. Torch-free.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stagedkd.errors import DataError

FLOW, OTHER = "optical flow", "another modality than RGB"
RGB, PLAIN = "rgb", "plain"
_FLOW_WORDS = "flow flows opticalflow optflow optical tvl1 farneback flownet flownet2 liteflownet pwcnet"
_NEUTRAL_WORDS = "frame frames image images img imgs jpeg jpegs jpg map maps png raw video videos"
_FLOW, _NEUTRAL = frozenset(_FLOW_WORDS.split()), frozenset(_NEUTRAL_WORDS.split())
# Flow beside another word of it; alone they may be clips.
_WEAK = frozenset(["brox", "of", "raft", "warp", "warped"])
_AXES = frozenset(["x", "y", "u", "v", "horizontal", "vertical", "inverse"])
_OTHER = frozenset(["depth", "disparity", "infrared", "ir", "nir", "skeleton", "skeletons", "thermal"])
_RGB = frozenset(["color", "colour", "rgb"])
_ANY = re.compile("|".join(sorted(_FLOW | _WEAK | _OTHER | _RGB)))
_ALONE = r"|^[\W_]*([xyuv]|horizontal|vertical)[\W_]*$"
_LIKELY = re.compile("|".join(sorted(_FLOW | _WEAK | _OTHER | _RGB | _NEUTRAL)) + _ALONE)
_GLUED = re.compile(r"(flow|tvl1|of|warp)([xyuv])")
PARTNERS = {"x": "y", "y": "x", "u": "v", "v": "u"}
HINT = "if they are classes, set data: {folders: classes}"
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Modality:
    """What a clip is by its name. kind: FLOW, OTHER, RGB or PLAIN. base: its path without the words for the kind, which
    all modalities of one clip share. weak: the name may be that of a clip, too."""

    base: Parts
    kind: str
    weak: bool = False


def kind_of(name: str) -> tuple[str, bool] | None:
    """Return the modality that a whole name is of, and whether the name is weak; None if it is of none."""
    if not _LIKELY.search(name.lower()):  # most names, and fast
        return None
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = [word for word in re.split(r"[\W_]+", _GLUED.sub(r"\1 \2", parted)) if word]
    own = [word for word in words if word not in _NEUTRAL]
    if not words:
        return None
    if not own:
        return RGB, True
    if set(own) <= _FLOW | _WEAK | _AXES:
        return FLOW, not (set(own) & _FLOW or (set(own) & _WEAK and len(own) > 1))
    if set(own) <= _OTHER:
        return OTHER, False
    return (RGB, False) if set(own) <= _RGB else None


def modality(address: str) -> Modality:
    """Read the modality of a clip from its address, without a part. The first folder may be a class."""
    path = PurePosixPath(address)
    parts = path.parent.parts if "{" in path.name else (*path.parent.parts, path.stem)
    if len(parts) > 1 and (told := kind_of(parts[-1])):
        return Modality(parts[:-1], *told)
    if not _ANY.search(address.lower()):
        return Modality(parts, PLAIN)
    if parts and (ended := _ended(parts[-1])):
        return Modality((*parts[:-1], ended[0]), ended[1])
    for place in range(1, len(parts) - 1):
        told = kind_of(parts[place])
        if told and not told[1]:
            return Modality((*parts[:place], *parts[place + 1 :]), told[0])
    return Modality(parts, PLAIN)


def _ended(name: str) -> tuple[str, str] | None:
    """Return what is before the modality at the end of a name such as c0_flow_x, or after that at its beginning."""
    for place in re.finditer(r"[_\-. ]+", name):
        before, after = name[: place.start()], name[place.end() :]
        for rest, words in ((before, after), (after, before)):
            told = kind_of(words)
            if rest and told and not told[1]:
                return rest, told[0]
    return None


def beside_rgb(addresses: Collection[str]) -> dict[str, str]:
    """Return the clips that are another modality of a clip that is read: address -> why they are left out."""
    read = {address: modality(address) for address in addresses}
    rows: dict[Parts, list[str]] = defaultdict(list)
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)  # folder -> the folders of pictures in it
    for address, what in read.items():
        rows[what.base].append(address)
        if "{" in PurePosixPath(address).name:
            folders[PurePosixPath(address).parent.parent].append(address)
    near = {folder / PurePosixPath(a).parent.name for folder, inside in folders.items() for a in inside}
    sole = {folder: all(map(_may_be_modality, inside)) for folder, inside in folders.items()}
    out: dict[str, str] = {}
    for address, what in read.items():
        if what.kind not in (FLOW, OTHER):
            continue
        folder = PurePosixPath(address).parent
        mates = [other for other in rows[what.base] if read[other].kind in (RGB, PLAIN)]
        if what.weak:
            alone = "{" in address and sole[folder.parent] and (mates or folder.parent in near)
            if alone and _has_partner(folder, near):
                out[address] = what.kind
        elif mates or (what.kind == FLOW and "{" in address and _plain_beside(folder, folders[folder.parent], read)):
            out[address] = what.kind
    return out


def _may_be_modality(address: str) -> bool:
    return kind_of(PurePosixPath(address).parent.name) is not None


def _has_partner(folder: PurePosixPath, near: Collection[PurePosixPath]) -> bool:
    """Return whether a folder of one letter has the other one beside it; a folder of another name needs none."""
    partner = PARTNERS.get(folder.name.lower())
    return partner is None or bool({folder.with_name(partner), folder.with_name(partner.upper())}.intersection(near))


def _plain_beside(folder: PurePosixPath, inside: Sequence[str], read: Mapping[str, Modality]) -> bool:
    """Return whether a folder of flow lies beside a folder of pictures that are no flow."""
    return kind_of(folder.name) is not None and any(read[other].kind in (RGB, PLAIN) for other in inside)


def are_modalities(videos: Sequence[str]) -> str | None:
    """Return the reason to leave out videos beside pictures if all are named as flow or depth, else None."""
    kinds = [modality(f"clip/{name}") for name in videos]
    if any(what.kind not in (FLOW, OTHER) for what in kinds) or (any(w.weak for w in kinds) and len(videos) < 2):
        return None
    return FLOW if any(what.kind == FLOW for what in kinds) else OTHER


def require_classes(root: Path, labels: Iterable[str]) -> list[str]:
    """Return notes on classes that are named as modalities.

    Raises:
        DataError: all classes are, or one is named as a modality of another.
    """
    names = sorted(set(labels))
    told = [name for name in names if (what := kind_of(name)) and not what[1]]
    if told and len(told) == len(names):
        best = next((name for name in told if kind_of(name) == (RGB, False)), told[0])
        shown = ", ".join(f"{name}/" for name in told)
        what = "are named as modalities, not as classes" if len(told) > 1 else "is named as a modality, not as a class"
        hint = f"put the class folders of one of them, such as {best}/, into data.path; {HINT}"
        raise DataError(f"{root}: {shown} {what}", hint=hint)
    for name in names:
        ended = _ended(name)
        if ended and ended[0] in names:
            hint = f"move {name}/ away; {HINT}"
            raise DataError(f"{root}: {name}/ is named as a modality of the clips in {ended[0]}/", hint=hint)
    return [f"{name}/ is read as a class, and is named as a modality" for name in told]


def require_one_each(root: Path, addresses: Iterable[str]) -> None:
    """Raise DataError if clips are several modalities of one clip, and none is RGB."""
    rows: dict[Parts, list[str]] = defaultdict(list)
    for address in addresses:
        what = modality(address)
        if what.kind in (FLOW, OTHER) and not what.weak:
            rows[what.base].append(address)
    for base, several in sorted(rows.items()):
        if len(several) > 1:
            hint = "move all but one away, or list the clips to read in a table (data.kind: csv)"
            shown = ", ".join(sorted(several))
            raise DataError(f"{root / '/'.join(base)} has several modalities, and none is RGB: {shown}", hint=hint)
