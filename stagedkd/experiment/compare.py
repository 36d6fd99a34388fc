"""Compare two builds of one result, bit for bit."""

# pyright: reportUnknownVariableType=false
# The type stubs of safetensors are incomplete.
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stagedkd.store.maintenance import manifest_at
from stagedkd.store.manifest import Manifest, file_digest

if TYPE_CHECKING:
    from torch import Tensor


def compare_artifacts(original: Path, rebuilt: Path) -> list[str]:
    """Describe how the `files/` of two artifacts differ; give an empty list if they are equal bit for bit."""
    first, second = (_files(folder / "files") for folder in (original, rebuilt))
    manifest = manifest_at(original)
    published = manifest.files if isinstance(manifest, Manifest) else dict[str, str]()
    lines: list[str] = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            lines.append(f"{name} is {'missing' if name not in first else 'not rebuilt'}")
            continue
        changed = name in published and published[name] != file_digest(first[name])
        note = " (the original was changed after it was published)" if changed else ""
        lines += [difference + note for difference in compare_files(name, first[name], second[name])]
    return lines


def compare_files(name: str, first: Path, second: Path) -> list[str]:
    """Describe how two files differ; give an empty list if they are equal bit for bit."""
    return [] if file_digest(first) == file_digest(second) else [_describe_difference(name, first, second)]


def _files(folder: Path) -> dict[str, Path]:
    """The files below a folder, by their relative paths."""
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _describe_difference(name: str, first: Path, second: Path) -> str:
    try:
        if name.endswith(".safetensors"):
            return f"{name}: {_describe_weights(first, second)}"
        if name.endswith(".json"):
            old, new = (dict(_leaves(json.loads(path.read_text("utf-8")))) for path in (first, second))
            keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            changes = [f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys[:3]]
            equal = "the values are equal, the spacing differs"
            return f"{name}: " + (", ".join(changes) or equal) + (", ..." if len(keys) > 3 else "")
    except Exception:  # a file that cannot be read differs, whichever error its reader raises
        pass
    return f"{name} differs"


def _describe_weights(first: Path, second: Path) -> str:
    """Describe how two safetensors files differ that are not equal bit for bit."""
    from safetensors import safe_open

    with safe_open(first, "pt") as first_weights, safe_open(second, "pt") as second_weights:
        old, new = cast(Any, first_weights), cast(Any, second_weights)
        if set(old.keys()) != set(new.keys()):
            return "the names of the tensors differ"
        pairs: list[tuple[Tensor, Tensor]] = [(old.get_tensor(key), new.get_tensor(key)) for key in old.keys()]  # noqa: SIM118
        different = [(a, b) for a, b in pairs if a.shape != b.shape or a.dtype != b.dtype or not a.equal(b)]
        if not different:
            what = "metadata differ" if old.metadata() != new.metadata() else "order differs"
            return f"the tensors are equal, the {what}"
        gaps = [float((a.double() - b.double()).abs().max()) for a, b in different if a.shape == b.shape and a.numel()]
        return f"{len(different)} of {len(pairs)} tensors differ, by {max(gaps, default=float('nan')):.3g} at most"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The scalars of a JSON value with their dotted paths."""
    if isinstance(value, list):
        value = dict(enumerate(cast("list[Any]", value)))
    if not isinstance(value, dict):
        yield path, value
        return
    for name, item in cast("dict[Any, Any]", value).items():
        yield from _leaves(item, f"{path}.{name}" if path else str(name))
