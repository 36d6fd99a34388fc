"""Files that list the classes: one name a line, with or without its number, or JSON. Torch-free.

A header is dropped where it is known, or where all lines but the first have a number. What may be read in two ways is
refused, since a wrong line shifts the numbers of all classes after it.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stagedkd.data.layouts.classes import ClassList, clean_name, is_number, require_unique
from stagedkd.errors import DataError

HINT = "a line is NAME, NUMBER,NAME or NAME,NUMBER; other names can be listed in the spec (data: {classes: [...]})"
_BETWEEN = r"[.):=,;|\t]|->|=>|-(?=\s)"
_NUMBERED = re.compile(rf"[\[(]?(?P<number>\d{{1,18}})(?P<mark>[\])]?\s*(?:{_BETWEEN})\s*|[\])]\s*|\s+)(?P<name>\S.*)")
_NUMBERED_AFTER = re.compile(
    r"(?P<name>.*?\S)(?P<mark>\s*(?:[:=,;|\t]|->|=>)\s*|\s+-\s+|\s+(?=[\[(])|\s+)[\[(]?(?P<number>\d{1,18})[\])]?"
)
_WORDS = "class(es)?|labels?|names?"
_HEADER = re.compile(rf"((class|label)?_?(id|idx|index|name|names|number)|{_WORDS})", re.IGNORECASE)
# These may also be classes: a note says that the line is dropped.
_MORE = (
    "action|activity|activities|category|categories|gesture|sign|gloss|verb|word|event|behaviou?r|description|target"
)
_OTHER = "klassen?|aktion(en)?|kategorien?|bezeichnung|nummer|nr|no|num|code|clases?|nombre|nom|acci[oó]n"
_LIKELY = re.compile(
    rf"(({_WORDS}|{_MORE}|{_OTHER})s?|id|ids|idx|index|number)([ _-]?(id|idx|nr|names?|labels?))?", re.I
)
_ID = re.compile(r"(.*[ _-])?(id|ids|idx|index|nr|no|num|number|nummer)|(class|label|action)(id|idx|index)", re.I)
_NAME = re.compile(rf"({_WORDS}|{_MORE}|{_OTHER})s?([ _-]?(names?|labels?))?", re.IGNORECASE)
_COUNT = re.compile(
    r"(counts?|anzahl|total|sum|size|frames|clips|videos|samples|instances|images|duration|length|freq\w*|support|weight)"
    r"|(n|num|number)_.*|.*[ _-]counts?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Lines:
    """The lines of a file that are neither empty nor comments: (number of the line, text)."""

    path: Path
    lines: tuple[tuple[int, str], ...]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.lines]

    def wrong(self, place: int, what: str) -> DataError:
        return DataError(f"{self.path}:{self.lines[place][0]}: {what}", hint=HINT)

    def header_note(self) -> str:
        return f"{self.path.name}: its first line, '{self.lines[0][1]}', is read as a header"


Numbered = list[tuple[int, str]]


def read_classes(path: Path) -> ClassList:
    """Read a list of classes: a JSON list or map, or a text with one class a line, with or without its number.

    Raises:
        DataError: the file cannot be read, names a class twice, or may be read in two ways.
    """
    notes: list[str] = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        rows = _from_json(path, _parsed(text)) if is_json else _from_lines(path, text, notes)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8", hint="save it in UTF-8") from None
    except RecursionError:
        raise DataError(f"{path} is not a list of classes: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    numbers = [number for number, _ in rows]
    names = tuple(clean_name(name) for _, name in sorted(rows))
    if not names:
        raise DataError(f"{path} lists no classes")
    if sorted(numbers) not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        hint = "if the numbers are parts of the names, list the classes in the spec: data: {classes: [...]}"
        raise DataError(f"{path}: the numbers of the classes are not 0, 1, 2, ... or 1, 2, 3, ...", hint=hint)
    joined = [name for name in names if re.search(r"[,;|\t]", name)] if path.suffix.lower() != ".json" else []
    if joined:
        notes.append(f"{path.name}: a comma or the like is part of {len(joined)} names, such as '{joined[0]}'")
    return ClassList(require_unique(names, str(path)), min(numbers), str(path), tuple(notes))


def _parsed(text: str) -> Any:
    """Parse JSON. Raises ValueError: it is none, or a key is there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"'{twice[0]}' is there twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _from_json(path: Path, content: Any) -> Numbered:
    """Return (number, name) from a list of names, a map number -> name or a map name -> number."""
    if isinstance(content, list) and all(isinstance(name, str) for name in cast("list[Any]", content)):
        return list(enumerate(cast("list[str]", content)))
    if isinstance(content, dict):
        pairs = list(cast("dict[str, Any]", content).items())
        if all(is_number(name) and isinstance(value, str) for name, value in pairs):
            by_name = all(is_number(str(value)) for _, value in pairs)
            if not by_name:
                return [(int(number), str(value)) for number, value in pairs]
        if all(is_number(str(value)) for _, value in pairs):
            return [(int(value), name.strip('"')) for name, value in pairs]
    raise DataError(f"{path} must be a list of class names, or a map of names and numbers")


def _from_lines(path: Path, text: str, notes: list[str]) -> Numbered:
    """Return (number, name) of each line. What was left out goes to `notes`."""
    if path.suffix.lower() in (".yaml", ".yml"):
        raise DataError(f"{path} is no list of classes", hint="list them in the spec, or in a text or JSON file")
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    comments = ("#", "//", ";", "%", "--")
    lines = _Lines(path, tuple((n, line) for n, line in numbered if line and not line.startswith(comments)))
    if len(lines.lines) > 1 and all(re.match(r"[-*]\s", line) for line in lines.texts):  # a list with bullets
        lines = _Lines(path, tuple((n, line[1:].strip()) for n, line in lines.lines))
    if not lines.lines:
        return []
    for separator in "\t;,|":
        rows = _cells(lines.texts, separator)
        widths = {len(cells) for cells in rows[1:] or rows}
        if len(widths) == 1 and min(widths) > 1:
            return _from_columns(lines, rows, min(widths), notes)
    plain = _Lines(path, tuple((n, _bare(line)) for n, line in lines.lines))
    for form in (_NUMBERED, _NUMBERED_AFTER):
        if (found := _from_marks(plain, form, notes)) is not None:
            return found
    names = plain.texts
    words = re.split(r"[,;\t ]+", names[0].rstrip(":"))
    if all(map(_HEADER.fullmatch, words)):
        names = names[1:]
    elif all(map(_LIKELY.fullmatch, words)) and len(names) > 1:
        names = names[1:]
        notes.append(lines.header_note())
    return list(enumerate(names))


def _bare(line: str) -> str:
    """Return a line without quotes around names, and without a separator at its end."""
    line = re.sub(r'"([^"]*)"', r"\1", line).rstrip(",; ")
    return re.sub(r"(?<!\w)'([^']*)'(?!\w)", r"\1", line)


# ---------------------------------------------------------------- columns


def _cells(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Split lines into cells; one that is empty at the end of all lines is dropped."""
    try:
        rows = [next(csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True)) for line in lines]
    except csv.Error:
        return [[line] for line in lines]
    if all(len(cells) > 1 and not cells[-1].strip() for cells in rows):
        rows = [cells[:-1] for cells in rows]
    return [[cell.strip() for cell in cells] for cells in rows]


def _from_columns(lines: _Lines, rows: list[list[str]], width: int, notes: list[str]) -> Numbered:
    """Return (number, name) of lines that all have the same number of cells, 2 or more."""
    first, body = rows[0], rows[1:] or rows
    integer = [c for c in range(width) if all(is_number(cells[c]) for cells in body)]
    if not integer:
        raise lines.wrong(0, f"its lines have {width} cells, and in no column all are numbers")
    headed = len(first) != width or not all(is_number(first[c]) for c in integer)
    if headed and (len(rows) < 2 or not all(first)):
        raise lines.wrong(0, "its line is neither a class with its number nor a header")
    names = first if headed and len(first) == width else []
    number, name = _columns(lines, names, width, integer)
    if headed and not all(map(_HEADER.fullmatch, first)):
        notes.append(lines.header_note())
    if width > 2:
        notes.append(f"{lines.path.name}: of its {width} columns, {names[number]} and {names[name]} are read")
    return [(int(cells[number]), cells[name]) for cells in (body if headed else rows)]


def _columns(lines: _Lines, header: Sequence[str], width: int, integer: Sequence[int]) -> tuple[int, int]:
    """Return which column holds the numbers, and which the names."""
    numbers = [c for c in integer if not (header and _COUNT.fullmatch(header[c]))]
    if not numbers:
        raise lines.wrong(0, f"the column '{header[integer[0]]}' counts something else than classes")
    if width == 2:
        named = [c for c in numbers if header and _ID.fullmatch(header[c])] or numbers
        return named[0], 1 - named[0]
    ids = [c for c in numbers if header and _ID.fullmatch(header[c])] or numbers
    names = [c for c in range(width) if header and c not in integer and _NAME.fullmatch(header[c])]
    if len(ids) != 1 or len(names) != 1:
        raise lines.wrong(0, f"it cannot be told which of its {width} columns are the number and the name")
    return ids[0], names[0]


# ---------------------------------------------------------------- marks


def _from_marks(lines: _Lines, form: re.Pattern[str], notes: list[str]) -> Numbered | None:
    """Return (number, name) of lines such as `0 walk`, `0. walk` or `walk=0`; None if they are names alone."""
    matches = [form.fullmatch(text) for text in lines.texts]
    found = [m for m in matches if m]
    rows = [(int(m["number"]), m["name"]) for m in found]
    distinct = len({number for number, _ in rows}) == len({name for _, name in rows}) == len(rows)
    blank = all(not m["mark"].strip() for m in found)  # weaker than a mark: names may hold numbers
    counted = sorted(number for number, _ in rows) in (list(range(len(rows))), list(range(1, len(rows) + 1)))
    if not rows or (blank and not distinct):
        return None
    if not distinct:
        raise lines.wrong(0, "two lines have the same number, or the same name")
    if len(rows) == len(matches):
        ends = [re.fullmatch(r"(.*\S)\s+\d+", name) for _, name in rows]
        if len(rows) > 1 and len({end[1] for end in ends if end}) == len(rows):
            raise lines.wrong(0, "its lines have a number before and after the name")
        return rows
    others = [place for place, match in enumerate(matches) if match is None]
    words = re.split(r"[^\w]+", lines.texts[0].strip("([])"))
    if others == [0] and (not blank or all(map(_LIKELY.fullmatch, words))):
        if not all(map(_HEADER.fullmatch, words)):
            notes.append(lines.header_note())
        return rows
    if 2 * len(rows) > len(matches) and (counted or not blank) and len(rows) > 1:
        raise lines.wrong(others[0], f"'{lines.texts[others[0]]}' has no number, and most lines have one")
    return None
