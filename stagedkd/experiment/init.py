"""`stagedkd init`: write a spec that runs for the user's videos."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from stagedkd.data.draft import Draft, draft
from stagedkd.errors import UsageError, remedy
from stagedkd.files import write_whole
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.inherit import in_project
from stagedkd.spec.load import load_spec, specs_root

PARAMS = """\
# Where and how runs happen. Nothing here changes a key.
runtime:
  data_dir: .             # root of the data sets
"""


@dataclass(frozen=True)
class NewProject:
    """The spec that was written, the number of its clips, and the lines that tell the user what was done."""

    spec: Path
    clips: int
    lines: tuple[str, ...]


def init_project(videos: Path, out: Path | None) -> NewProject:
    """Write a spec for `videos` (a folder, a table or a list), and params.yaml if the folder is in no project yet.

    Args:
        out: the file of the spec; specs/<name>.yaml in the working folder if None.
    Raises:
        UsageError, DataError: there are no videos, a class has too few, or the spec exists or cannot be written.
    """
    spec = out or Path("specs") / f"{_name(videos)}.yaml"
    if spec.exists():
        raise UsageError(f"{spec} exists already", hint="remove it, or name another file with --out")
    here, target = Path.cwd(), (Path.cwd() / spec).resolve()
    known = in_project(target)
    root = specs_root(target) if known else here if target.is_relative_to(here) else target.parent
    named = known or bool(os.environ.get("STAGEDKD_DATA"))
    new_spec = draft(videos, load_runtime(root).folder("data_dir") if named else root, root, spec)
    lines = [*new_spec.notes]
    try:
        spec.parent.mkdir(parents=True, exist_ok=True)
        if not known:
            write_whole(root / "params.yaml", PARAMS)
            lines.append(f"wrote {os.path.relpath(root / 'params.yaml')}: this folder is now a project")
        write_whole(spec, new_spec.text)
    except OSError as error:
        hint = f"{remedy(error)}, or name another file with --out"
        where = f"{error.filename}: " if error.filename and str(error.filename) != str(spec) else ""
        raise UsageError(f"{spec} cannot be written: {where}{error.strerror}", hint=hint) from error
    load_spec(spec)
    return NewProject(spec, new_spec.clips, (*lines, f"wrote {spec}: {_size(new_spec)}"))


def _name(videos: Path) -> str:
    """Return the name of a spec for videos, without what a file name should not have."""
    found = videos.resolve()
    return re.sub(r"[^A-Za-z0-9_.-]", "_", found.stem if found.is_file() else found.name).strip("._-")[:60] or "videos"


def _size(new_spec: Draft) -> str:
    some = ", ".join(new_spec.classes[:8]) + (", ..." if len(new_spec.classes) > 8 else "")
    return f"{new_spec.clips} clips of {len(new_spec.classes)} classes ({some}), about {new_spec.frames} frames each"
