"""The folder of a student that the Hugging Face hub takes. Making it needs no network."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stagedkd.deploy.export.write import README, REPORT
from stagedkd.deploy.student import Found
from stagedkd.errors import UsageError
from stagedkd.files import write_whole
from stagedkd.report.card import CARD, WEIGHTS


def publish(found: Found, folder: Path, out: Path, exports: Sequence[str]) -> list[Path]:
    """Copy weights, card, model card, own code of the network and exports into `out`. Returns the files.

    Args:
        folder: of the student. exports: names below its `export`; none are copied that are not named.
    Raises:
        UsageError: an export or the model card is missing, or `out` is not empty.
    """
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UsageError(f"{out} is not empty", hint="name a new folder with --out")
    if not (folder / README).is_file():
        raise UsageError(f"{folder} has no {README}", hint="write it: run stagedkd report on the spec")
    for name in exports:
        if not (folder / "export" / name / REPORT).is_file():
            raise UsageError(f"{folder} has no export '{name}'", hint=f"make it: stagedkd export {folder} --to {name}")
    out.mkdir(parents=True, exist_ok=True)
    (out / WEIGHTS).write_bytes(found.weights.content)
    write_whole(out / CARD, found.card.text)
    shutil.copy(folder / README, out / README)
    code = found.card.arch.user_files
    if code is not None:
        source, target = found.root / code.path, out / code.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    for name in exports:
        shutil.copytree(folder / "export" / name, out / name)
    return sorted(path for path in out.rglob("*") if path.is_file())
