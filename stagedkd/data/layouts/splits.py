"""Tell split folders from class folders: SPLIT/CLASS/CLIP, CLASS/SPLIT/CLIP, or classes alone. Torch-free.

What is beyond doubt is read. What is not is refused with a hint, or read as classes with a note.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stagedkd.errors import DataError

SPLIT_NAMES = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation", "validate", "dev", "eval", "evaluation"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}
# Two or three letters may also be a class: they are splits where all folders say so and hold the same classes.
_SHORT = {"tr": "train", "trn": "train", "va": "val", "vl": "val", "vld": "val", "te": "test", "ts": "test"}
_SHORT |= {"tst": "test"}
_BESIDE_WORDS = "clips data dataset frames images pictures rawframes rgb set split videos"  # train_set, videos_val
_BESIDE = frozenset(_BESIDE_WORDS.split())
_UNLABELLED = re.compile(r"(un|no)_?(label+(ed|s)?|annotated|sup|supervised)", re.IGNORECASE)
_LABELLED = re.compile(r"(label+ed|annotated|supervised)", re.IGNORECASE)
_AS_CLASSES = "if they are classes, set data: {folders: classes}"
Above = tuple[str, ...]  # the folders that a clip lies in, from the root on


@dataclass(frozen=True)
class Order:
    """How folders are read. splits: the path of each split folder -> its split; empty if all folders are classes.
    inner: the split folders lie below the class folders. depth: that of the last folder that is read."""

    splits: Mapping[str, str] = field(default_factory=dict[str, str])
    inner: bool = False
    notes: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return 2 if self.splits else 1

    def read(self, above: Above) -> tuple[str, str] | None:
        """Return the class and the split ("" if none is stated) of a clip; None if it lies in no class folder."""
        if len(above) < self.depth:
            return None
        if self.inner:
            return above[0], self.splits["/".join(above[:2])]
        return (above[1], self.splits[above[0]]) if self.splits else (above[0], "")


@dataclass(frozen=True)
class _Name:
    """A folder's name. split: the one that it names, or None. rest: its other words. short: by an abbreviation."""

    split: str | None
    rest: tuple[str, ...]
    short: bool = False


def split_of(name: str) -> str | None:
    """Return the split that a folder is named after, such as train, Validation, videos_val, TestData or trainval, which
    is for training; else None."""
    read = _read(name)
    return None if read.rest or read.short else read.split


def _words(name: str) -> list[str]:
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return [word for word in re.split(r"[\W\d_]+", parted.lower()) if word]


def _is(form: re.Pattern[str], name: str) -> bool:
    return any(form.fullmatch(word) for word in (name, *_words(name)))


def _split_of_word(word: str) -> str | None:
    """Return the split of one word: train, trainset, datatrain or trainval."""
    forms = {word} | {word.removesuffix(b) for b in _BESIDE} | {word.removeprefix(b) for b in _BESIDE}
    joined = {a + b: "train" for a in ("train", "training") for b in ("val", "valid", "validation", "dev")}
    return next((split for form in sorted(forms) if (split := (SPLIT_NAMES | joined).get(form))), None)


def _read(name: str) -> _Name:
    words = [word for word in _words(name) if word not in _BESIDE]
    told = [split for word in words if (split := _split_of_word(word))]
    rest = tuple(word for word in words if not _split_of_word(word))
    if len(told) == 1 or told == ["train", "val"]:
        return _Name(told[0], rest)
    short = [_SHORT[word] for word in words if word in _SHORT]
    if not told and len(short) == 1:
        return _Name(short[0], tuple(word for word in words if word not in _SHORT), short=True)
    return _Name(None, tuple(words))


def find_splits(root: Path, clips: Sequence[Above], folders: Iterable[str], *, forced: bool) -> Order:
    """Tell how the folders below a root are to be read.

    Args:
        clips: the folders that each clip lies in. folders: those directly below the root. forced: they are splits.
    Raises:
        DataError: it cannot be told, or the splits are not complete; the hint says what to do.
    """
    tops: dict[str, set[str]] = defaultdict(set)  # folder -> the folders in it
    for above in filter(None, clips):
        tops[above[0]] |= set(above[1:2])
    _require_labels(root, tops)
    splits = _top_splits(root, tops, folders, forced=forced)
    if splits:
        _require_once_each(root, splits)
        _require_training(root, splits)
        return Order(splits)
    inner, notes = _inner_splits(root, clips, forced=forced)
    if inner:
        _require_training(root, inner)
        return Order(inner, inner=True)
    _require_apart(root, tops, forced)
    named = [f"{name}/" for name in sorted(tops) if _read(name).split and not _read(name).rest]
    if named:
        as_splits = "splits are read where every folder is one and holds class folders"
        what = "is a class by its place" if len(named) == 1 else "are classes by their place"
        notes.append(f"{_and(named)} {what}: {as_splits}")
    return Order(notes=tuple(notes))


def _require_apart(root: Path, tops: Mapping[str, set[str]], forced: bool) -> None:
    """Raise DataError if half of the folders seem to be splits by another name, such as Trainingsdaten, and all hold
    folders of one name."""
    likely = [name for name in tops if split_of(name) or re.search("train|test|valid", name.lower())]
    common = sorted(set[str].intersection(*tops.values())) if len(tops) > 1 else []
    if common and likely and 2 * len(likely) >= len(tops) and not forced:
        hint = "if they are splits, name them train, val and test; if they are classes, set data: {folders: classes}"
        raise DataError(f"{root}: {_and([f'{n}/' for n in sorted(tops)])} each hold a folder {common[0]}/", hint=hint)


def _and(names: Collection[str]) -> str:
    return ", ".join(names)


def _require_labels(root: Path, tops: Mapping[str, set[str]]) -> None:
    """Raise DataError if a folder of clips without labels lies beside split folders or labelled clips."""
    bare = [name for name in sorted(tops) if _is(_UNLABELLED, name)]
    others = [name for name in tops if name not in bare and (split_of(name) or _is(_LABELLED, name))]
    if bare and others:
        hint = f"list the clips in a table, where a label may be empty (data.kind: csv); or move {bare[0]}/ away"
        raise DataError(f"{root}: {bare[0]}/ lies beside {others[0]}/, and its clips have no class", hint=hint)


def _top_splits(root: Path, tops: Mapping[str, set[str]], folders: Iterable[str], *, forced: bool) -> Mapping[str, str]:
    """Return folder -> split if the folders directly below the root are splits, else {}.

    Raises:
        DataError: it cannot be told, since the folders are named as splits and hold no class folders, or a folder
            beside them holds clips.
    """
    splits = {name: s for name in folders if (s := split_of(name)) is not None and (name in tops or forced)}
    if len(splits.keys() & tops.keys()) < len(tops):
        splits = _alike(tops) or splits
    others = [name for name in tops if name not in splits]
    in_classes = any(tops[name] for name in splits if name in tops)
    doubtful = len(splits) > 1 and "train" in splits.values()
    if len(splits) == len(others) == 1 and "train" in splits.values():
        doubtful = bool(tops[others[0]] & set[str]().union(*(tops.get(name, set()) for name in splits)))
    if not splits or not (forced or in_classes or len(splits) > 1):
        return {}
    if others and (forced or (in_classes and doubtful)):
        told = _and([f"{name}/" for name in splits])
        hint = f"move {others[0]}/ away; or, if all of them are classes, set data: {{folders: classes}}"
        raise DataError(f"{root} has split folders ({told}) and {others[0]}/, which also holds videos", hint=hint)
    if others:
        return {}
    if not in_classes and len(splits) > 1:
        if all(_read(name).short for name in splits):
            return {}
        hint = f"{_AS_CLASSES}; if tables hold the labels, name them (data.kind: csv)"
        raise DataError(f"{root}: {_and(splits)} are named as splits and hold no class folders", hint=hint)
    return splits


def _alike(names: Mapping[str, set[str]]) -> dict[str, str]:
    """Return folder -> split if all folders are named as splits in one way, such as ucf_train and ucf_test, or tr and
    te, and hold the same classes if abbreviated; else {}."""
    read = {name: _read(name) for name in names}
    splits = {name: r.split for name, r in read.items() if r.split}
    if len(splits) < len(names) or len(set(splits.values())) < 2 or len({r.rest for r in read.values()}) > 1:
        return {}
    abbreviated = any(r.short for r in read.values())
    common = set[str].intersection(*names.values())
    return splits if not abbreviated or common or not any(names.values()) else {}


def _inner_splits(root: Path, clips: Sequence[Above], *, forced: bool) -> tuple[dict[str, str], list[str]]:
    """Return CLASS/SPLIT -> split if each clip of each class lies in a split folder, else {}; and notes.

    Raises:
        DataError: some clips lie in such folders, and others do not; or the classes lie below the splits.
    """
    inside = sorted({above[:2] for above in clips if above})
    names: dict[str, set[str]] = {above[1]: set() for above in inside if len(above) > 1}
    alike = _alike(names) if len(names) > 1 else {}
    told = {"/".join(a): s for a in inside if len(a) > 1 and (s := alike.get(a[1]) or _named_below(*a))}
    if not told:
        return {}, []
    classes = {above[0] for above in inside}
    outside = sorted("/".join(above) for above in inside if "/".join(above) not in told)
    shown = _and([f"{path}/" for path in sorted(told)[:2]])
    if outside and (forced or len(set(told.values())) > 1):
        hint = "put all clips into split folders; or, if they are none, set data: {folders: classes}"
        raise DataError(f"{root}: {shown} are named as splits, and {outside[0]}/ holds other clips", hint=hint)
    if outside:
        what = "are named as splits, and are parts of their classes"
        return {}, [f"{shown} {what if len(told) > 1 else 'is named as a split, and is a part of its class'}"]
    if len(classes) == 1 and all(len(above) > 2 for above in clips if above):
        (only,) = classes
        raise DataError(
            f"{root} holds one folder, {only}/, and the splits in it", hint=f"end data.path in {only}; {_AS_CLASSES}"
        )
    return told, []


def _named_below(label: str, name: str) -> str | None:
    """Return the split of a folder in a class folder, such as walk/train or walk/walk_train; else None."""
    read = _read(name)
    return read.split if not read.short and read.rest in ((), tuple(_words(label))) else None


def _require_once_each(root: Path, splits: Mapping[str, str]) -> None:
    """Raise DataError if two folders are the same split."""
    names: dict[str, list[str]] = defaultdict(list)
    for folder, split in splits.items():
        names[split].append(folder)
    for split, folders in names.items():
        if len(folders) > 1:
            hint = "put them into one folder; or, if they are classes, set data: {folders: classes}"
            raise DataError(f"{root}: {' and '.join(folders)} are both the {split} split", hint=hint)


def _require_training(root: Path, splits: Mapping[str, str]) -> None:
    """Raise DataError if no folder is for training."""
    if "train" not in splits.values():
        told = _and([f"{name}/" for name in sorted(splits)[:4]])
        hint = f"name the folder of the training clips train; {_AS_CLASSES}"
        raise DataError(f"{root} has split folders ({told}), and none is for training", hint=hint)
