"""`SPEC.tuned.yaml`: what `stagedkd tune` chose for each setting of a spec, and the accuracies behind it. A spec takes
the choices with `tuned: SPEC.tuned.yaml`; they are merged over the grid's axes, under --set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from stagedkd.errors import Origin, Place, Problem, SpecError
from stagedkd.spec.inherit import tidy_path
from stagedkd.spec.yaml import Node, read_yaml

FORM = 1
ALL = "all"  # the name of the only setting of a spec whose grid has no axis but the seed
HEAD = "# Made by `{command}`; do not edit.\n# Accuracies are top-1 on validation, by tuning seed.\n"


@dataclass(frozen=True)
class TunedSetting:
    """What was chosen for the setting `name`: the values by field, and `lowest` or `highest` for those at the edge of
    the values tried. `trainings` counts the trainings behind the choices, over all values and seeds. `taken`: another
    setting takes them (`tune.at`)."""

    values: Mapping[str, Node] = field(default_factory=dict[str, Node])
    edges: Mapping[str, str] = field(default_factory=dict[str, str])
    trainings: int = 0
    name: str = ALL
    taken: bool = False


@dataclass(frozen=True)
class Tuned:
    """A tuned file: the spec that it was made for, the digest of what it was made from, its tuning seeds, and its
    settings by name."""

    path: Path
    spec: Path
    made_from: str
    seeds: tuple[str, ...]
    settings: Mapping[str, TunedSetting]


def tuned_path(spec: Path) -> Path:
    """Return the path of the tuned file of a spec: specs/x.yaml -> specs/x.tuned.yaml."""
    return spec.with_name(f"{spec.stem}.tuned.yaml")


def tune_command(spec: Path) -> str:
    """Return the command that makes the tuned file of a spec."""
    return Origin(str(spec)).command("tune")


def read_tuned(named: Node, spec: Path) -> Tuned:
    """Read the tuned file that `named`, the value of `tuned` in `spec`, names by a path relative to the spec.

    Raises:
        SpecError: the file is missing, or is no tuned file.
    """
    if not isinstance(named.value, str) or not named.value:
        hint = f"for example tuned: {tuned_path(spec).name}"
        raise SpecError([Problem("'tuned' must be the path of a tuned file", named.place, hint)])
    path = tidy_path(spec.parent / named.value)
    if not path.is_file():
        stem = path.name.removesuffix(".tuned.yaml")
        made_for = spec if tuned_path(spec).name == path.name else path.with_name(f"{stem}.yaml")
        hint = f"run: {tune_command(tidy_path(made_for))}"
        raise SpecError([Problem(f"there is no file {named.value}", named.place, hint)])
    document = read_yaml(path)
    made_for, form = document.below("spec"), document.below("form")
    settings = document.below("settings")
    if made_for is None or form is None or form.value != FORM or settings is None or not settings.map:
        hint = f"make it again: {tune_command(spec)}"
        raise SpecError([Problem(f"{named.value} is not a tuned file of this version", named.place, hint)])
    seeds, digest = document.below("seeds"), document.below("made_from")
    return Tuned(
        path,
        tidy_path(path.parent / str(made_for.value)),
        str(digest.value if digest else ""),
        tuple(str(item.value) for item in seeds.items) if seeds else (),
        {name: _read_setting(name, node) for name, node in settings.map.items()},
    )


def _read_setting(name: str, node: Node) -> TunedSetting:
    values, edges, tried = (node.below(name) for name in ("choice", "edge", "tried"))
    trainings = sum(len(accuracies.map) for row in (tried.items if tried else ()) if (accuracies := row.below("top1")))
    return TunedSetting(
        dict(values.map) if values else {},
        {name: str(edge.value) for name, edge in edges.map.items()} if edges else {},
        trainings,
        name,
    )


def tuned_problems(
    tuned: Tuned, made_from: str, owners: Mapping[str, str | None], seeds: Iterable[str], at: Place
) -> list[Problem]:
    """Return what is wrong with using a tuned file: it is stale, lacks a setting, or its seeds are in the results.

    Args:
        made_from: the digest of what it would be made from now. owners: the settings of the spec that uses it, and for
            each the one whose choice it takes; None if there is none. seeds: those of the spec that uses it.
    """
    hint = f"run: {tune_command(tuned.spec)}"
    if tuned.made_from != made_from:
        message = f"{tuned.path.name} is stale: {tuned.spec.name} or its section tune has changed since it was made"
        return [Problem(message, at, hint)]
    problems = [
        Problem(f"{tuned.path.name} has no setting '{owner or name or ALL}'", at, f"it has {', '.join(tuned.settings)}")
        for name, owner in owners.items()
        if owner is None or (owner or ALL) not in tuned.settings
    ]
    shared = [seed for seed in seeds if seed in tuned.seeds]
    if shared:
        message = f"seed {shared[0]} is both a tuning seed of {tuned.path.name} and a seed of the results"
        problems.append(Problem(message, at, "choose seeds for the results that tuning did not use"))
    return problems


def without_fields(settings: Mapping[str, TunedSetting], fields: Iterable[str]) -> dict[str, TunedSetting]:
    """Return settings without the choices of fields that something else sets."""
    left_out = tuple(fields)

    def kept(setting: TunedSetting) -> TunedSetting:
        values = {name: value for name, value in setting.values.items() if name not in left_out}
        return replace(setting, values=values, trainings=setting.trainings if values else 0)

    return {name: kept(setting) for name, setting in settings.items()}


def taken_note(setting: TunedSetting | None) -> tuple[str, ...]:
    """Return a note if a setting takes values that were tuned for another one."""
    if setting is None or not setting.taken or not setting.values:
        return ()
    return (f"{', '.join(setting.values)}: as tuned for {setting.name} (tune.at)",)


def edge_notes(settings: Mapping[str, TunedSetting]) -> tuple[str, ...]:
    """Return a note for each field and edge that was chosen in some setting, with the names of the settings."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, setting in {setting.name: setting for setting in settings.values()}.items():
        for path, edge in setting.edges.items():
            if path in setting.values:  # always, unless the file was edited
                rows.setdefault((path, edge, str(setting.values[path].plain())), []).append(name)
    return tuple(
        f"tune chose {path} = {value}, the {edge} that it tried, for {', '.join(names)}: a better one may lie beyond"
        for (path, edge, value), names in rows.items()
    )


def tuned_text(values: Mapping[str, Any], spec: Path) -> str:
    """Return the text of a tuned file. The same values give the same bytes."""
    body = yaml.safe_dump(dict(values), sort_keys=False, width=110, default_flow_style=None, allow_unicode=True)
    return HEAD.format(command=tune_command(Path(spec.name))) + body
