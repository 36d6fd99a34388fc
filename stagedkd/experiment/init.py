"""`stagedkd init`: write a spec that runs for a folder of videos."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stagedkd.data.draft import draft
from stagedkd.errors import UsageError
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.inherit import ROOT_MARKS
from stagedkd.spec.load import load_spec, specs_root

PARAMS = """\
# Where and how runs happen. Nothing here changes a key.
runtime:
  data_dir: .             # root of the data sets
"""


@dataclass(frozen=True)
class NewProject:
    """The spec that was written, and the lines that tell the user what was done."""

    spec: Path
    lines: tuple[str, ...]


def init_project(folder: Path, out: Path | None) -> NewProject:
    """Write a spec for the videos in `folder`, and params.yaml if the working folder is no project yet.

    Args:
        out: the file of the spec; specs/<folder>.yaml if None.
    Raises:
        UsageError, DataError: there are no videos, a class has too few, or the spec exists already.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", folder.resolve().name).strip("._-") or "videos"
    spec = out or Path("specs") / f"{stem}.yaml"
    if spec.exists():
        raise UsageError(f"{spec} exists already", hint="name another file with --out")
    root, lines = specs_root(Path.cwd() / spec), list[str]()
    if not any((root / mark).exists() for mark in ROOT_MARKS):
        root = Path.cwd()
        params: Path | None = root / "params.yaml"
    else:
        params = None
    data_dir = root if params else load_runtime(root).folder("data_dir")
    new_spec = draft(folder, data_dir, root)
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(new_spec.text.replace("THIS_FILE", spec.as_posix()), "utf-8")
    if params:
        params.write_text(PARAMS, "utf-8")
        lines.append("wrote params.yaml: this folder is now a project")
    load_spec(spec)
    size = f"{new_spec.clips} clips of {len(new_spec.classes)} classes, about {new_spec.frames} frames each"
    lines.append(f"wrote {spec}: {size}")
    return NewProject(spec, tuple(lines))
