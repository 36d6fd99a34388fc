"""The order of the classes, and their names in one form. Torch-free."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from stagedkd.data.index import Entry
from stagedkd.errors import DataError

_SEPARATORS = re.compile(r"[|;+&/]")
_INTEGER = re.compile(r"[+-]?\d{1,18}")  # more digits are a word: no list counts so far


@dataclass(frozen=True)
class ClassList:
    """A stated order of the classes. first: the number of the first class, by which lists may name it (0 or 1). notes:
    what a user should know about the list."""

    names: tuple[str, ...]
    first: int = 0
    where: str = "data.classes"
    notes: tuple[str, ...] = ()


def is_number(text: str) -> bool:
    """Return whether a text is a number that may count classes: decimal digits, and not too many."""
    return text.isdecimal() and _INTEGER.fullmatch(text) is not None


def clean_name(name: str) -> str:
    """Return a class name without outer blanks and in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def classes_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the class names in the order of their ids: sorted as integers if all are integers, else as text."""
    names = {e.label for e in entries} - {""}
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def with_classes(entries: Sequence[Entry], stated: ClassList | None) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Return the entries with clean class names, and the classes in the order of their ids.

    Labels that are integers are numbers of stated classes.

    Raises:
        DataError: a label is none of the stated classes.
    """
    cleaned = tuple(replace(e, label=clean_name(e.label)) for e in entries)
    if stated is None:
        return cleaned, classes_of(cleaned)
    names = set(stated.names)
    labels = {e.label for e in cleaned} - {""}
    if labels <= names:
        return cleaned, stated.names
    unknown = sorted(labels - names)
    if not all(map(is_number, labels)):
        hint = f"add it to the classes, in {stated.where}, or correct the label"
        raise DataError(f"the label '{unknown[0]}' is none of the {len(names)} classes of {stated.where}", hint=hint)
    by_number = _numbers(labels, stated)
    return tuple(replace(e, label=by_number[e.label] if e.label else "") for e in cleaned), stated.names


def _numbers(labels: set[str], stated: ClassList) -> dict[str, str]:
    """Return the class name of each label that is a number."""
    numbers, count = {int(label) for label in labels}, len(stated.names)
    first = stated.first
    if first == 1 and 0 in numbers:
        first = 0  # the numbers of the list begin at 1, those of the labels at 0, as in mmaction2's lists of UCF101
    elif first == 1 and count not in numbers:
        hint = "list the classes in the spec, in the order of the labels: data: {classes: [...]}"
        raise DataError(f"{stated.where} counts classes from 1, and the labels may count from 0 or 1", hint=hint)
    if outside := sorted(n for n in numbers if not first <= n < first + count):
        what = f"the classes of {stated.where} are {first} to {first + count - 1}"
        raise DataError(f"the label {outside[0]} is no class: {what}", hint="correct the label, or add the class")
    return {label: stated.names[int(label) - first] for label in labels}


def name_notes(raw: Iterable[str], classes: Sequence[str]) -> list[str]:
    """Return notes on class names that were brought to one form, that differ only in case, that are made of other
    classes, and on numbers that are left out. `raw`: the labels as written."""
    notes: list[str] = []
    forms: dict[str, set[str]] = defaultdict(set)
    for label in set(raw):
        forms[clean_name(label)].add(label)
    for name, spellings in sorted(forms.items()):
        if len(spellings) > 1:
            written = ", ".join(ascii(s) for s in sorted(spellings))
            notes.append(f"the class '{name}' is written in {len(spellings)} ways ({written}): they are one class")
    cases: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        cases[" ".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    for names in cases.values():
        if len(names) > 1:
            notes.append(f"the classes {' and '.join(map(repr, names))} differ only in case or spacing: are they one?")
    for name in _made_of_others(classes):
        notes.append(f"the label '{name}' seems to name several classes: it is a class of its own, one label a clip")
    equal = Counter(int(name) for name in classes if is_number(name))
    for number, times in sorted(equal.items()):
        if times > 1:
            names = " and ".join(repr(name) for name in classes if is_number(name) and int(name) == number)
            notes.append(f"the classes {names} are the same number: are they one?")
    if classes and all(map(is_number, classes)) and (count := max(equal) - len(equal.keys() - {0})):
        absent = islice((number for number in itertools.count(1) if number not in equal), min(5, count))
        some = ", ".join(map(str, absent)) + (", ..." if count > 5 else "")
        notes.append(f"no clip has the label {some}: ids are counted without it; data.classes can state all classes")
    return notes


def unused_note(used: Iterable[str], stated: ClassList) -> list[str]:
    """Return a note on stated classes that no clip has: one of them may be the header of a file."""
    known = set(used)
    absent = [name for name in stated.names if name not in known]
    if not absent:
        return []
    some = ", ".join(repr(name) for name in absent[:3]) + (", ..." if len(absent) > 3 else "")
    return [f"{stated.where} names {len(stated.names)} classes, and no clip has {some}"]


def _made_of_others(classes: Sequence[str]) -> list[str]:
    """Return the names that join other names, such as sit|talk: a part is a class, or a part of another name."""
    parts = {name: [part.strip() for part in _SEPARATORS.split(name)] for name in classes}
    uses = Counter(part for row in parts.values() for part in set(row))
    joined = [name for name, row in parts.items() if len(row) > 1 and any(uses[p] > 1 for p in row if p)]
    known = set(classes)
    joined += [name for name in classes if "," in name and all(p.strip() in known for p in name.split(","))]
    return joined


def require_unique(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the names. Raises DataError: one is empty or listed twice."""
    times = Counter(names)
    for name in names:
        if not name or times[name] > 1:
            raise DataError(f"{where}: the class '{name}' is {'listed twice' if name else 'empty'}")
    return names
