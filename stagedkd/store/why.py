"""Why a stage is a miss: what differs from the nearest artifact of its kind."""

from __future__ import annotations

from collections.abc import Iterable

from stagedkd.plan.compare import changed_fields, in_short
from stagedkd.plan.graph import Graph, Stage
from stagedkd.plan.key import Key
from stagedkd.store.manifest import Manifest


def why_miss(plan: Graph, stage: Stage, stored: Iterable[Manifest]) -> str:
    """The keyed fields in which a stage differs from the stored artifact of its kind that it is nearest to, as
    `field old -> new`; else the inputs that changed; "nothing of its kind is stored" where there is none."""
    needs = {name: above.key for name, above in plan.inputs(stage).items()}
    found: list[tuple[int, str]] = []
    for manifest in stored:
        if manifest.kind != stage.work.kind:
            continue
        fields = changed_fields(manifest.work, stage.work)
        inputs = [name for name, key in needs.items() if manifest.needs.get(name) != key]
        found.append((2 * len(fields) + len(inputs), in_short(fields, inputs)))
    return min(found)[1] if found else "nothing of its kind is stored"


def made_of(manifest: Manifest) -> list[tuple[int, str, Key]]:
    """What made an artifact: (depth, input, key) of it and all above it, each with what it needs below it, an upstream
    that was named already not opened again."""
    found: list[tuple[int, str, Key]] = []

    def add(depth: int, given: str, key: Key) -> None:
        again = any(key == seen for _, _, seen in found)
        found.append((depth, given, key))
        for name, above in sorted(manifest.closure[key].needs.items()) if not again else ():
            add(depth + 1, name, above)

    add(0, "", manifest.key)
    return found
