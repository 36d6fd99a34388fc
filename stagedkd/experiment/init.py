"""`stagedkd init`: from a folder of videos to a spec that runs."""

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
class Started:
    """The spec that was written, and what is to be said about it."""

    spec: Path
    lines: tuple[str, ...]


def start(folder: Path, out: Path | None) -> Started:
    """Write a spec for the videos in `folder`, and params.yaml where the working folder is no project yet.

    Raises:
        UsageError, DataError: no videos, too few of a class, or the spec is there already.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", folder.resolve().name).strip("._-") or "videos"
    spec = out or Path("specs") / f"{stem}.yaml"
    if spec.exists():
        raise UsageError(f"{spec} is there already", hint="name another file with --out")
    root, lines = specs_root(Path.cwd() / spec), list[str]()
    if not any((root / mark).exists() for mark in ROOT_MARKS):
        root = Path.cwd()
        params: Path | None = root / "params.yaml"
    else:
        params = None
    data_dir = root if params else load_runtime(root).folder("data_dir")
    made = draft(folder, data_dir, root)
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(made.text.replace("THIS_FILE", spec.as_posix()), "utf-8")
    if params:
        params.write_text(PARAMS, "utf-8")
        lines.append("wrote params.yaml: this folder is the project now")
    load_spec(spec)
    lines.append(f"wrote {spec}: {made.clips} clips of {len(made.classes)} classes, about {made.frames} frames each")
    return Started(spec, tuple(lines))
