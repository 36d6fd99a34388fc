"""Why the store lacks a stage's artifact: how the stage differs from the nearest artifact of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from pydantic import BaseModel

from stagedkd.plan.compare import changed_fields, in_short
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.spec.schema import Architecture
from stagedkd.spec.schema.losses.clipwise import WeightFile
from stagedkd.spec.schema.losses.own import FileLoss
from stagedkd.spec.schema.networks.base import UserFiles
from stagedkd.store.manifest import Manifest


def why_miss(plan: Graph, stage: Stage, stored: Iterable[Manifest]) -> str:
    """Explain why a stage is a miss, by the stored artifact of its kind that differs least from it.

    Returns:
        the keyed fields that differ, as `field old -> new`; else the inputs that changed; or "nothing of its kind is
        stored".
    """
    needs = {name: above.key for name, above in plan.inputs(stage).items()}
    reasons: list[tuple[int, str]] = []  # (distance, reason)
    for manifest in stored:
        if manifest.kind != stage.work.kind:
            continue
        fields = changed_fields(manifest.work, stage.work)
        inputs = [name for name, key in needs.items() if manifest.needs.get(name) != key]
        reasons.append((2 * len(fields) + len(inputs), in_short(fields, inputs)))
    return min(reasons)[1] if reasons else "nothing of its kind is stored"


def sources_of(manifest: Manifest) -> dict[str, str]:
    """The digests of all that an artifact was made of and that no stage made: data sets, weights, the user's files."""
    digests = {f"data {name}": entry.fingerprint for name, entry in manifest.lock.data.items()}
    digests |= {f"weights {name}": sha256 for name, sha256 in manifest.lock.weights.items()}
    for upstream in manifest.closure.values():
        digests |= {f"your file {path}": digest for path, digest in _user_files(upstream.work)}
    return digests


def _user_files(value: Any) -> Iterator[tuple[str, str]]:
    """The paths and digests of the user's files in a work, at any depth."""
    match value:
        case FileLoss():
            yield value.path, value.digest
        case WeightFile():
            yield value.file, value.digest
        case Architecture(user_files=UserFiles() as files):
            yield files.path, files.digest
        case _:
            pass
    inner: Iterable[Any] = ()
    if isinstance(value, BaseModel):
        inner = (getattr(value, name) for name in type(value).model_fields)
    elif isinstance(value, Mapping):
        inner = cast("Mapping[Any, Any]", value).values()
    elif isinstance(value, list | tuple):
        inner = cast("Iterable[Any]", value)
    for item in inner:
        yield from _user_files(item)


def made_of(manifest: Manifest) -> list[tuple[int, str, Key]]:
    """The tree of inputs that an artifact was made of, in depth-first order. Each row is (depth, name of the input,
    key); the first row is the artifact itself. The inputs of a stage are listed only where it comes up first."""
    rows: list[tuple[int, str, Key]] = []

    def add(depth: int, name: str, key: Key) -> None:
        repeated = any(key == listed for _, _, listed in rows)
        rows.append((depth, name, key))
        for upstream, above in sorted(manifest.closure[key].needs.items()) if not repeated else ():
            add(depth + 1, upstream, above)

    add(0, "", manifest.key)
    return rows
