"""What the pieces of a stage were made by, where it was stopped and went on: `began.json` in its scratch folder, a list
of facts as run.json has them. A piece is begun where they are other than before; {} stands for one of which nothing is
known. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from stagedkd.files import write_whole
from stagedkd.stages.provenance import SAME
from stagedkd.store.store import unfinished

Facts: TypeAlias = Mapping[str, Any]
NAME = "began.json"


def read_pieces(scratch: Path) -> list[Facts]:
    """The pieces that an unfinished stage is made of by now; none where there is nothing to go on from."""
    if not unfinished(scratch):
        return []
    try:
        found: Any = json.loads((scratch / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, list) or not found or not all(map(_is_piece, found)):
        return [{}]
    return found


def _is_piece(value: Any) -> bool:
    return isinstance(value, dict) and (not value or {"gpus", "threads"} <= value.keys())


def write_pieces(scratch: Path, pieces: Sequence[Facts]) -> None:
    """Leave word for whoever goes on."""
    write_whole(scratch / NAME, json.dumps(pieces))


def began(scratch: Path) -> dict[str, list[Facts]]:
    """For run.json: `began`, where a stage that is done was made in several pieces."""
    pieces = read_pieces(scratch)
    return {"began": pieces} if len(pieces) > 1 else {}


def in_words(run: Facts) -> str:
    """By what the pieces of a run.json were made, as far as they differ: `gpus: 2, then gpus: 1`; "" for a whole."""
    pieces = [_flat(piece) for piece in run.get("began", ())]
    known = [piece for piece in pieces if piece]
    names = dict.fromkeys(name for piece in known for name in piece)
    other = [name for name in names if any(piece.get(name) != known[0].get(name) for piece in known)]

    def words(piece: dict[str, Any]) -> str:
        if not piece:
            return "unknown"
        return ", ".join(f"{name}: {piece.get(name, 'absent')}" for name in other) or "what run.json says"

    return ", then ".join(map(words, pieces))


def _flat(piece: Facts) -> dict[str, Any]:
    return {name: piece[name] for name in SAME if name in piece} | dict(piece.get("packages") or {})
