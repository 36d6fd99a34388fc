"""Something-Something v2 and Jester, the two sets of 20BN, with their official lists. Torch-free.

Their test clips have no labels, so the official validation split is the test split, as in papers; validation clips are
drawn from the official training clips.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from stagedkd.data.index import Entry, Listing
from stagedkd.data.layouts.classes import is_number
from stagedkd.data.layouts.lists import left_out_of, require_once, with_lists
from stagedkd.data.layouts.spelling import Spelling
from stagedkd.data.layouts.tables import read_columns, read_lines
from stagedkd.data.layouts.walk import missing, walk
from stagedkd.errors import DataError

_LISTS = ("train", "validation")
LISTS = r"((labels|annotations)/[^/]*|(something-something|jester|train|validation|test|labels)[^/]*)\.(csv|json)"
SSV2, JESTER = "something-something-v2", "jester-v1"


def list_ssv2(root: Path) -> Listing:
    """List the clips of Something-Something v2: the class of a clip is its template, without the brackets.

    Raises:
        UsageError: a list is missing. DataError: a list is wrong; names the file and the number of the entry.
    """
    files = {name: _find(root, f"{SSV2}-{name}.json", f"{name}.json") for name in ("train", "validation", "labels")}
    numbers = _json(files["labels"])
    if not isinstance(numbers, dict) or not all(is_number(str(n)) for n in cast("dict[str, Any]", numbers).values()):
        raise DataError(f"{files['labels']} must be a map: label -> number")
    classes = tuple(sorted(cast("dict[str, Any]", numbers), key=lambda name: int(numbers[name])))
    folder = f"20bn-{SSV2}"
    spelled = Spelling(root)
    entries: list[Entry] = []
    for name, split in (("train", ""), ("validation", "test")):
        rows = _json(files[name])
        if not isinstance(rows, list):
            raise DataError(f"{files[name]} must be a list of clips")
        for number, row in enumerate(cast("list[Any]", rows), 1):
            clip, template = (row.get("id"), row.get("template")) if isinstance(row, dict) else (None, None)
            label = str(template).replace("[", "").replace("]", "")
            if not is_number(str(clip)) or label not in numbers:
                what = "needs an id and a template of the list of labels"
                raise DataError(f"{files[name]}: entry {number} {what}: {str(row)[:80]}")
            path = spelled(f"{folder}/{clip}.webm")
            entries.append(Entry(path, label, path, split))
    return _listing(root, entries, classes, files, spelled)


def list_jester(root: Path) -> Listing:
    """List the clips of Jester: a folder of pictures for each clip. Its lists are `ID;LABEL` without a header (20BN),
    or tables with the columns video_id and label (Qualcomm).

    Raises:
        UsageError: a list is missing. DataError: a list is wrong; names file and line.
    """
    files = {name: _find(root, f"{JESTER}-{name}.csv", f"{name}.csv", f"{name.title()}.csv") for name in _LISTS}
    headed = "video_id" in next(iter(read_lines(files["train"])), (0, ""))[1]
    names = (f"{JESTER}-labels.csv", "labels.csv", "Labels.csv")
    if not headed or any((folder / name).is_file() for folder in _folders(root) for name in names):
        files["labels"] = _find(root, *names)
    classes = tuple(line.strip() for _, line in read_lines(files["labels"])) if "labels" in files else ()
    folder = f"20bn-{JESTER}"
    runs = walk(root / folder).pictures if (root / folder).is_dir() else ()
    addresses = {run.address.rpartition("/")[0]: f"{folder}/{run.address}" for run in runs}
    entries: list[Entry] = []
    for name, split in (("train", ""), ("validation", "test")):
        columns = ("video_id", "label") if headed else ("id", "label")
        for row in read_columns(files[name], "," if headed else ";", columns, header=headed):
            clip, label = row.cells[columns[0]], row.cells["label"]
            if classes and label not in classes:
                raise DataError(f"{files[name]}:{row.line}: '{label}' is no class of {files['labels'].name}")
            path = addresses.get(clip, f"{folder}/{clip}/{{:05}}.jpg")
            entries.append(Entry(path, label, path, split))
    return _listing(root, entries, classes, files, None)


def _listing(
    root: Path,
    entries: list[Entry],
    classes: tuple[str, ...],
    files: dict[str, Path],
    spelled: Spelling | None,
) -> Listing:
    require_once(root, entries)
    entries.sort(key=lambda e: e.path)
    left_out = with_lists(left_out_of(walk(root), root, entries), LISTS)
    return Listing(root, tuple(entries), classes, files, left_out, spelled.notes() if spelled else ())


def _folders(root: Path) -> tuple[Path, ...]:
    """Return where the lists may be."""
    return root, root / "labels", root / "annotations"


def _find(root: Path, *names: str) -> Path:
    """Return the list with one of these names, in the root or in its folder `labels` or `annotations`."""
    for folder in _folders(root):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise missing(root / names[0], "list", f"put the official lists and the folder 20bn-... into {root}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8", hint="save it in UTF-8") from None
    except RecursionError:
        raise DataError(f"{path} is no list of 20BN: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
