"""Read tables of clips as people write them: with or without a header, separated by tabs, commas, semicolons or blanks.

A row is strict: it has as many cells as the others, and a quote ends on its own line. Torch-free.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.walk import PICTURE_SUFFIXES, VIDEO_SUFFIXES, is_dir
from stagedkd.errors import DataError
from stagedkd.spec.schema.videos import Column

COLUMNS: tuple[str, ...] = get_args(Column)
ALSO = {  # names of columns in the tables of other tools
    "file_name": "path",
    "filename": "path",
    "filepath": "path",
    "file": "path",
    "video": "path",
    "video_path": "path",
    "class": "label",
    "class_name": "label",
    "time_start": "start",
    "start_time": "start",
    "time_end": "end",
    "end_time": "end",
    "start_frame": "offset",
    "num_frames": "frames",
    "total_frames": "frames",
}
_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")
_NAMES = {"\t": "tab", ";": "semicolon", ",": "comma", " ": "blank"}


@dataclass(frozen=True)
class Row:
    """A row of a table: the number of its line, counted from 1, and its cells by column, without outer blanks."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table. columns: its columns in order. rows: those that are not empty. notes: what was dropped or renamed."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Split:
    """Lines split into cells by one separator."""

    separator: str
    rows: tuple[tuple[int, list[str]], ...]


def read_table(path: Path, columns: Sequence[str] | None, spelled: Spelling) -> Table:
    """Read a table of clips.

    Args:
        columns: the names of the columns in order; None takes the header, or tells the columns by what is in them.
        spelled: finds the files of paths; a path that exists helps to tell a separator, and a clip from a header.
    Raises:
        DataError: the table cannot be read; names the file and the line.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path} lists no clips")
    header = None if columns else _header(lines[0][1])
    if header and header != " ":
        return _with_header(path, lines, header, spelled)
    headed = columns is not None and header is None  # a header of other names may come first
    if header == " ":
        columns, lines = _names(lines[0][1].split()), lines[1:]
    split = _best_split(path, lines, spelled, columns)
    rows, width = split.rows, len(split.rows[0][1])
    _require_width(path, rows, width, "the first row", split.separator)
    if columns and len(columns) != width:
        raise DataError(f"{path}:{rows[0][0]}: data.columns has {len(columns)} names, but the row has {width} cells")
    names = tuple(columns or _told_by_content(path, rows, spelled))
    if headed and not looks_like_clip(rows[0][1][names.index("path")], spelled):
        words = all(re.fullmatch(r"[^\W\d][\w ]*", cell.strip()) for cell in rows[0][1])
        rows = rows[1:] if words else rows
    if not rows:
        raise DataError(f"{path} lists no clips")
    _require_clips(path, rows, names.index("path"), spelled)
    return Table(
        path, names, tuple(Row(n, _cells(names, cells)) for n, cells in rows), _told_notes(path, names, columns)
    )


def _told_notes(path: Path, names: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """Return a note on columns that were told by their content, where they are not path and label alone."""
    told = columns is None and len(names) > 2
    return (f"{path.name}: its columns are read as {', '.join(names)}; data.columns can say otherwise",) if told else ()


def _require_clips(
    path: Path, rows: Sequence[tuple[int, list[str]]], place: int, spelled: Spelling, *, headed: bool = False
) -> None:
    """Raise DataError at the first row that is no clip, such as a header of unknown names, a sum or a comment. A clip
    that is missing on the disk is one if its path looks like those of other rows."""
    paths = [cells[place].strip() for _, cells in rows]
    clips = [looks_like_clip(cell, spelled) for cell in paths]
    others = [clip for cell, clip in zip(paths, clips, strict=True) if cell and not clip]
    suffixed = any(Path(cell).suffix.lower() in VIDEO_SUFFIXES for cell in paths)
    for number, ((line, _), cell) in enumerate(zip(rows, paths, strict=True)):
        within = any(Path(word).suffix.lower() in VIDEO_SUFFIXES for word in cell.split(" ")[:-1])
        lone = len(others) == 1 and len(rows) > 1  # all other rows are clips
        if _is_comment(cell, spelled):
            hint = "remove the row"
        elif not cell or clips[number]:
            continue
        elif "/" in cell or "\\" in cell:
            far = number == 0 and not is_dir(spelled.root / spelled.folder(cell.replace("\\", "/").rpartition("/")[0]))
            if not within and not (lone and (suffixed or far)):
                continue
            hint = _hint_of(within, headed)
        elif headed and not within and not lone and not suffixed:
            continue
        else:
            hint = _hint_of(within, headed)
        raise DataError(f"{path}:{line}: '{_excerpt(cell)}' is no clip", hint=hint)


def _is_comment(cell: str, spelled: Spelling) -> bool:
    """Return whether a row begins with a mark of comments, and is no file of such a name."""
    bare = cell.lstrip("#/% ")
    if not cell.startswith(("#", "//", "%")) or not bare or spelled.exists(cell):
        return False
    plain = cell.startswith("#") and Path(cell).suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES
    return not plain or cell[1:2] in " \t" or spelled.exists(bare)


def _hint_of(within: bool, headed: bool) -> str:
    if headed:
        return "remove the row, or correct the path"
    if within:
        return "separate the columns by commas or tabs: only the path may hold blanks"
    return f"if it is a header, its names must be of {', '.join(COLUMNS[:-1])}, or data.columns gives them"


def read_columns(
    path: Path, separator: str, columns: Sequence[str], *, header: bool = True, content: bytes | None = None
) -> tuple[Row, ...]:
    """Read an official table, which has these columns and maybe others. Without a header it has these alone.

    Args:
        content: of the file, where it was read already.
    Raises:
        DataError: a column is missing, or a row has another number of cells; names file and line.
    """
    lines = read_lines(path, content)
    rows = _split(path, lines, separator)
    names: Sequence[str] = columns
    if header:
        names, rows = [name.strip().lower() for name in rows[0][1]] if rows else [], rows[1:]
        if not set(columns) <= set(names):
            raise DataError(f"{path}:1: columns {', '.join(sorted(columns))} are needed")
    _require_width(path, rows, len(names), "the header" if header else "it must have", separator)
    return tuple(Row(line, _cells(names, cells)) for line, cells in rows)


def read_lines(path: Path, content: bytes | None = None) -> list[tuple[int, str]]:
    """Return the lines of a text that are not empty, with their numbers counted from 1. Raises DataError.

    Args:
        content: of the file, where it was read already.
    """
    text = _text(path, path.read_bytes() if content is None else content)
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _text(path: Path, content: bytes) -> str:
    """Return the text of a table, with line ends as \\n."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        hint = "save the table in UTF-8"
        raise DataError(f"{path}:{line} cannot be read as a table in UTF-8: {error.reason}", hint=hint) from None
    if "\0" in text:
        raise DataError(f"{path} is not text in UTF-8: it holds zero bytes", hint="save the table in UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ---------------------------------------------------------------- with a header


def _header(line: str) -> str | None:
    """Return the separator of a line that is a header, or None."""
    for separator in "\t;,":
        if {"path", "label"} & set(_names(line.split(separator))):
            return separator
    return " " if {"path", "label"} <= set(_names(line.split())) else None


def _names(cells: Sequence[str]) -> list[str]:
    """Return the names of columns, in our words."""
    plain = [cell.strip().strip('"').lower() for cell in cells]
    return [ALSO.get(name, name) for name in plain]


def _with_header(path: Path, lines: Sequence[tuple[int, str]], separator: str, spelled: Spelling) -> Table:
    rows = _split(path, lines, separator)
    (first, header), rows = rows[0], rows[1:]
    written, names, notes = [cell.strip() for cell in header], _names(header), list[str]()
    for number, name in enumerate(names):
        if name == "" or re.fullmatch(r"unnamed: \d+", name):
            cells = {cells[number].strip() for _, cells in rows if len(cells) == len(names)}
            if cells - {""} and not all(_INTEGER.fullmatch(cell) for cell in cells):
                raise DataError(f"{path}:{first}: column {number + 1} has no name", hint="name it, or remove it")
            names[number] = "ignore"
            notes.append(f"{path.name}: column {number + 1}, which has no name and only counts rows, is not read")
        elif name not in COLUMNS:
            hint = f"the columns are {', '.join(COLUMNS[:-1])}; data.columns gives other names, or 'ignore'"
            raise DataError(f"{path}:{first}: unknown column '{written[number]}'", hint=hint)
        elif name != written[number].lower():
            notes.append(f"{path.name}: column {written[number]} is read as {name}")
    if twice := [name for name in names if name != "ignore" and names.count(name) > 1]:
        raise DataError(f"{path}:{first}: two columns are '{twice[0]}'")
    if not {"path", "label"} <= set(names):
        hint = "the columns are path,label[,group][,split][,clean]"
        raise DataError(f"{path}:{first}: columns path and label are needed", hint=hint)
    _require_width(path, rows, len(names), "the header", separator)
    _require_clips(path, rows, names.index("path"), spelled, headed=True)
    return Table(path, tuple(names), tuple(Row(n, _cells(names, cells)) for n, cells in rows), tuple(notes))


def _cells(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name != "ignore"}


def _require_width(path: Path, rows: Sequence[tuple[int, list[str]]], width: int, example: str, separator: str) -> None:
    """Raise DataError at the first row that has another number of cells."""
    for line, cells in rows:
        if len(cells) != width:
            what = "more" if len(cells) > width else "fewer"
            hint = f'put a cell that holds a {_NAMES[separator]} into quotes: "..."'
            raise DataError(
                f"{path}:{line}: the row has {len(cells)} cells, {what} than {example} ({width})", hint=hint
            )


def _split(path: Path, lines: Sequence[tuple[int, str]], separator: str) -> tuple[tuple[int, list[str]], ...]:
    """Split each line into cells. A quoted cell must end on its line.

    Raises:
        DataError: a quote is not closed on its line, or text follows it.
    """
    rows: list[tuple[int, list[str]]] = []
    for line, text in lines:
        try:
            rows.append((line, _split_line(text, separator)))
        except csv.Error:
            if len(text) > csv.field_size_limit():
                raise DataError(f"{path}:{line}: the line has {len(text)} characters, which is no clip") from None
            hint = 'close the quote on its line, or write a quote within a quoted cell twice: ""'
            raise DataError(f"{path}:{line}: a stray quote: {_excerpt(text)}", hint=hint) from None
    return tuple(rows)


def _split_line(text: str, separator: str) -> list[str]:
    """Split one line. Blanks separate from the right, since paths may hold some. Raises csv.Error for a stray quote."""
    if separator != " ":
        return next(csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True))
    if text.lstrip().startswith('"'):
        quoted, end, rest = text.lstrip()[1:].partition('"')
        if not end:
            raise csv.Error
        return [quoted, *rest.split()]
    return text.split()


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- without a header


def _best_split(
    path: Path, lines: Sequence[tuple[int, str]], spelled: Spelling, columns: Sequence[str] | None
) -> _Split:
    """Split a list without a header by the separator under which the first cells are clips.

    Raises:
        DataError: under none of the separators they are.
    """
    best, most, place = None, -1.0, columns.index("path") if columns else 0
    for separator in "\t;, ":
        if separator != " " and not all(separator in text for _, text in lines):
            continue
        rows = _split(path, lines, separator)
        if separator == " ":
            rows = _joined_paths(rows, columns)
        elif columns is None and all(not cells[-1].strip() for _, cells in rows):
            rows = tuple((line, cells[:-1]) for line, cells in rows)  # each row ends in a separator
        sample = rows[:: max(1, len(rows) // 50)]
        held = [cells[place] for _, cells in sample if len(cells) > place]
        share = sum(looks_like_clip(cell, spelled) for cell in held) / len(sample)
        if share > most and len(rows[0][1]) > 1:
            best, most = _Split(separator, rows), share
    if best is None or most == 0:
        line, text = lines[0]
        hint = "a row is PATH LABEL, or PATH FRAMES LABEL, or a header names the columns: path,label"
        raise DataError(f"{path}:{line}: neither a header nor a clip with its label: {_excerpt(text)}", hint=hint)
    return best


def _joined_paths(
    rows: Sequence[tuple[int, list[str]]], columns: Sequence[str] | None
) -> tuple[tuple[int, list[str]], ...]:
    """Join the words of paths that hold blanks. The label is the last word; the numbers before it that every row has
    are columns, too."""
    if columns is None:
        numbers = min(_trailing_numbers(words) for _, words in rows)
    elif columns[0] == "path":
        numbers = len(columns) - 2
    else:
        return tuple(rows)
    return tuple((n, [" ".join(words[: -1 - numbers]), *words[-1 - numbers :]]) for n, words in rows)


def _trailing_numbers(words: Sequence[str]) -> int:
    """Return how many words before the last one, at most 3, are numbers; one word at least is left for the path."""
    count = 0
    while count < min(3, len(words) - 2) and _DECIMAL.fullmatch(words[-2 - count]):
        count += 1
    return count


def looks_like_clip(cell: str, spelled: Spelling) -> bool:
    """Return whether a cell is the path of a clip: it has the suffix of a video or of a picture, or it exists."""
    return Path(cell.strip()).suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES or spelled.exists(cell.strip())


def _told_by_content(path: Path, rows: Sequence[tuple[int, list[str]]], spelled: Spelling) -> tuple[str, ...]:
    """Tell the columns of a list without a header: the orders that SlowFast, VideoMAE and mmaction2 write.

    Raises:
        DataError: the cells fit no order, or several.
    """
    width = len(rows[0][1])
    forms = "".join(
        _form([cells[i] for _, cells in rows]) for i in range(1, width)
    )  # i: integers, n: numbers, w: words
    pictures = any(is_dir(spelled.root / spelled.find(cells[0].strip())) for _, cells in rows[:50])
    told = {
        "i": ("path", "label"),
        "n": ("path", "label"),
        "w": ("path", "label"),
        "ii": ("path", "frames", "label"),
        "iw": ("path", "frames", "label"),
        "wi": ("path", "label", "frames"),
        "inn": ("path", "label", "start", "end"),
        "iin": ("path", "label", "start", "end"),
        "wnn": ("path", "label", "start", "end"),
        "wni": ("path", "label", "start", "end"),
        "win": ("path", "label", "start", "end"),
        "wii": ("path", "label", "start", "end"),
        "nni": ("path", "start", "end", "label"),
        "nnw": ("path", "start", "end", "label"),
        "niw": ("path", "start", "end", "label"),
        "inw": ("path", "start", "end", "label"),
        **(
            {"iii": ("path", "offset", "frames", "label"), "iiw": ("path", "offset", "frames", "label")}
            if pictures
            else {}
        ),
    }
    if forms in told:
        return told[forms]
    hint = "name them in the spec, such as data: {columns: [path, label, start, end]}; 'ignore' skips one"
    raise DataError(f"{path}:{rows[0][0]}: the meaning of its {width} columns cannot be told", hint=hint)


def _form(cells: Sequence[str]) -> str:
    """Return i for integers, n for numbers of which one is no integer, w for words."""
    if all(_INTEGER.fullmatch(cell.strip()) for cell in cells):
        return "i"
    return "n" if all(_DECIMAL.fullmatch(cell.strip()) for cell in cells) else "w"
