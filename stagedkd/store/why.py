"""Why the store lacks a stage's artifact: how the stage differs from the nearest artifact of its kind."""

from __future__ import annotations

from collections.abc import Iterable

from stagedkd.plan.compare import changed_fields, in_short
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
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
