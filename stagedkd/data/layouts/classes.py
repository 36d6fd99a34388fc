"""The order of the classes, and their names in one form. Torch-free."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from stagedkd.data.index import Entry
from stagedkd.errors import DataError

_SEPARATORS = re.compile(r"[|;+&/]")
_NUMBERED = re.compile(r"(?P<number>\d+)\s*[\t ,;:]\s*(?P<name>\S.*)")
_NUMBERED_AFTER = re.compile(r"(?P<name>.*\S)\s*[\t ,;:]\s*(?P<number>\d+)")
_HEADER = re.compile(r"((class|label)?_?(id|idx|index|name|names|number)|class(es)?|label)", re.IGNORECASE)


@dataclass(frozen=True)
class ClassList:
    """A stated order of the classes. first: the number of the first class, by which lists may name it (0 or 1)."""

    names: tuple[str, ...]
    first: int = 0
    where: str = "data.classes"


def clean_name(name: str) -> str:
    """Return a class name without outer blanks and in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name).strip()


def classes_of(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the class names in the order of their ids: sorted as integers if all are integers, else as text."""
    names = {e.label for e in entries} - {""}
    if all(re.fullmatch(r"[+-]?\d+", name) for name in names):
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
    if not all(label.isdecimal() for label in labels):
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
    equal = Counter(int(name) for name in classes if name.isdecimal())
    for number, times in sorted(equal.items()):
        if times > 1:
            names = " and ".join(repr(name) for name in classes if name.isdecimal() and int(name) == number)
            notes.append(f"the classes {names} are the same number: are they one?")
    if classes and all(name.isdecimal() for name in classes):
        absent = sorted(set(range(int(classes[-1]) + 1)) - {int(name) for name in classes} - {0})
        if absent:
            some = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
            notes.append(
                f"no clip has the label {some}: ids are counted without it; data.classes can state all classes"
            )
    return notes


def _made_of_others(classes: Sequence[str]) -> list[str]:
    """Return the names that join other names, such as sit|talk: a part is a class, or a part of another name."""
    parts = {name: [part.strip() for part in _SEPARATORS.split(name)] for name in classes}
    uses = Counter(part for row in parts.values() for part in set(row))
    joined = [name for name, row in parts.items() if len(row) > 1 and any(uses[p] > 1 for p in row if p)]
    known = set(classes)
    joined += [name for name in classes if "," in name and all(p.strip() in known for p in name.split(","))]
    return joined


def read_classes(path: Path) -> ClassList:
    """Read a list of classes: a JSON list or map, or a text with one class a line, with or without its number.

    Raises:
        DataError: the file cannot be read, or names a class twice.
    """
    try:
        text = path.read_text("utf-8-sig")
        rows = _from_json(path, json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(path, text)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8", hint="save it in UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    numbers = [number for number, _ in rows]
    names = tuple(clean_name(name) for _, name in sorted(rows))
    if not names:
        raise DataError(f"{path} lists no classes")
    if sorted(numbers) not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        raise DataError(f"{path}: the numbers of the classes are not 0, 1, 2, ... or 1, 2, 3, ...")
    return ClassList(require_unique(names, str(path)), min(numbers), str(path))


def require_unique(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    """Return the names. Raises DataError: one is empty or listed twice."""
    for name in names:
        if not name or names.count(name) > 1:
            raise DataError(f"{where}: the class '{name}' is {'listed twice' if name else 'empty'}")
    return names


def _from_json(path: Path, content: Any) -> list[tuple[int, str]]:
    """Return (number, name) from a list of names, a map number -> name or a map name -> number."""
    if isinstance(content, list) and all(isinstance(name, str) for name in cast("list[Any]", content)):
        return list(enumerate(cast("list[str]", content)))
    if isinstance(content, dict):
        pairs = list(cast("dict[str, Any]", content).items())
        if all(name.isdecimal() and isinstance(value, str) for name, value in pairs):
            by_name = all(str(value).isdecimal() for _, value in pairs)
            if not by_name:
                return [(int(number), str(value)) for number, value in pairs]
        if all(str(value).isdecimal() for _, value in pairs):
            return [(int(value), name.strip('"')) for name, value in pairs]
    raise DataError(f"{path} must be a list of class names, or a map of names and numbers")


def _from_lines(path: Path, text: str) -> list[tuple[int, str]]:
    """Return (number, name) of each line: NAME, NUMBER NAME or NAME NUMBER, also with a comma, tab or semicolon."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if path.suffix.lower() in (".yaml", ".yml"):
        raise DataError(f"{path} is no list of classes", hint="list them in the spec, or in a text or JSON file")
    if lines and all(_HEADER.fullmatch(word) for word in re.split(r"[,;\t ]+", lines[0])):
        lines = lines[1:]
    lines = [re.sub(r'"([^"]*)"', r"\1", line) for line in lines]
    for pattern in (_NUMBERED, _NUMBERED_AFTER):
        matches = [pattern.fullmatch(line) for line in lines]
        rows = [(int(m["number"]), m["name"]) for m in matches if m]
        distinct = len({number for number, _ in rows}) == len({name for _, name in rows}) == len(lines)
        if rows and distinct:
            return rows
    return list(enumerate(lines))
