"""Two builds of one result, compared bit for bit."""

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
    """How the `files/` of two artifacts differ, in words; nothing where they are equal bit for bit."""
    first, second = (_files(folder / "files") for folder in (original, rebuilt))
    manifest = manifest_at(original)
    published = manifest.files if isinstance(manifest, Manifest) else dict[str, str]()
    found: list[str] = []
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            found.append(f"{name} is {'missing' if name not in first else 'not rebuilt'}")
            continue
        changed = name in published and published[name] != file_digest(first[name])
        note = " (the original was changed after it was published)" if changed else ""
        found += [difference + note for difference in compare_files(name, first[name], second[name])]
    return found


def compare_files(name: str, first: Path, second: Path) -> list[str]:
    """How two files differ, in words; nothing where they are equal bit for bit."""
    return [] if file_digest(first) == file_digest(second) else [_in_detail(name, first, second)]


def _files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def _in_detail(name: str, first: Path, second: Path) -> str:
    try:
        if name.endswith(".safetensors"):
            return f"{name}: {_weights_differ(first, second)}"
        if name.endswith(".json"):
            old, new = (dict(_leaves(json.loads(path.read_text("utf-8")))) for path in (first, second))
            at = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
            shown = [f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in at[:3]]
            return f"{name}: " + (", ".join(shown) or "other spacing") + (", ..." if len(at) > 3 else "")
    except Exception:  # what cannot be read differs, whatever the reader calls it
        pass
    return f"{name} differs"


def _weights_differ(first: Path, second: Path) -> str:
    from safetensors import safe_open

    with safe_open(first, "pt") as one, safe_open(second, "pt") as other_one:
        old, new = cast(Any, one), cast(Any, other_one)
        if set(old.keys()) != set(new.keys()):
            return "other tensors"
        pairs: list[tuple[Tensor, Tensor]] = [(old.get_tensor(key), new.get_tensor(key)) for key in old.keys()]  # noqa: SIM118
        other = [(a, b) for a, b in pairs if a.shape != b.shape or a.dtype != b.dtype or not a.equal(b)]
        if not other:
            return "the metadata differ, the tensors are equal" if old.metadata() != new.metadata() else "other order"
        far = [float((a.double() - b.double()).abs().max()) for a, b in other if a.shape == b.shape and a.numel()]
        return f"{len(other)} of {len(pairs)} tensors differ, by {max(far, default=float('nan')):.3g} at most"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        value = dict(enumerate(cast("list[Any]", value)))
    if not isinstance(value, dict):
        yield path, value
        return
    for name, item in cast("dict[Any, Any]", value).items():
        yield from _leaves(item, f"{path}.{name}" if path else str(name))
