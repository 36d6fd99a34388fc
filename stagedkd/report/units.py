"""The units over which a grid's intervals and tests are made: its seeds, or, where folds take turns, the groups of the
evaluated clips, such as people. Accuracies are fractions in 0..1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal, TypeAlias

from stagedkd.plan.graph import Plan
from stagedkd.report.results import NetworkResult
from stagedkd.report.statistics import failed_seeds, iqm, mean_interval, wilson
from stagedkd.stages.tables import read_table
from stagedkd.store.store import Store

Unit: TypeAlias = Literal["seed", "group"]
Repeat: TypeAlias = tuple[str, str]  # a seed and a fold, "" where the grid has none
Counts: TypeAlias = Mapping[str, tuple[int, int]]  # by group: clips that are right, and all clips


@dataclass(frozen=True)
class Score:
    """The accuracy of one network on the clips of one unit. Scores of equal `source` are the same measurement."""

    source: str
    top1: float
    clips: int


Scores: TypeAlias = Mapping[str, Mapping[Repeat, Score]]  # of one setting, by unit


@dataclass(frozen=True)
class Summary:
    """The results of one network at one setting: mean top-1 over `n` units, with its 95% interval. `iqm` is the
    interquartile mean, `failed` the number of seeds below 0.8 of the median over seeds. `dead` is the mean share of
    channels at the ends of substages that are constant over the clips, None where it was not measured."""

    top1: float
    interval: tuple[float, float]
    n: int
    iqm: float
    failed: int
    dead: float | None = None


def over_seeds(networks: Mapping[Repeat, NetworkResult], clips: Mapping[Repeat, int]) -> Scores:
    """Return the scores of a setting by seed. `clips` are the numbers of evaluated clips."""
    return {at[0]: {at: Score(network.key, network.top1, clips[at])} for at, network in networks.items()}


def over_groups(networks: Mapping[Repeat, NetworkResult], counts: Mapping[Repeat, Mapping[str, Counts]]) -> Scores:
    """Return the scores of a setting by group. `counts` are those of all networks of a cell, by name."""
    scores: dict[str, dict[Repeat, Score]] = {}
    for at, network in networks.items():
        for group, (right, clips) in counts[at].get(network.name, {}).items():
            scores.setdefault(group, {})[at] = Score(f"{network.key} {group}", right / clips, clips)
    return scores


def mean_of(repeats: Mapping[Repeat, Score]) -> float:
    """Return the mean of a unit over its repeats. What was measured once counts once: seeds may share a network."""
    return fmean({score.source: score.top1 for score in repeats.values()}.values())


def pooled(settings: Mapping[str, Scores]) -> Scores:
    """Return the scores of several settings, given by name, as those of one: each unit has the repeats that all
    settings have, so that every setting counts as much as any other."""
    found: dict[str, dict[Repeat, Score]] = {}
    for unit in dict.fromkeys(unit for scores in settings.values() for unit in scores):
        repeats = [scores.get(unit, {}) for scores in settings.values()]
        common = [at for at in repeats[0] if all(at in each for each in repeats)]
        for name, own in zip(settings, repeats, strict=True):
            for seed, fold in common:
                score = own[seed, fold]  # one network in two settings is measured twice
                found.setdefault(unit, {})[seed, f"{fold} {name}"] = replace(score, source=f"{name} {score.source}")
    return found


def summarize(scores: Scores, dead: Mapping[str, float | None]) -> Summary | None:
    """Return mean and interval over units; None if there is none. A unit counts by its `mean_of`, and units with the
    same measurements count once. `dead` is the share of dead channels by network."""
    units: dict[frozenset[str], tuple[float, int]] = {}
    seeds: dict[str, list[float]] = {}
    seen: set[str] = set()
    for repeats in scores.values():
        once = frozenset(score.source for score in repeats.values())
        units.setdefault(once, (mean_of(repeats), next(iter(repeats.values())).clips))
        for (seed, _), score in repeats.items():
            if score.source not in seen:
                seen.add(score.source)
                seeds.setdefault(seed, []).append(score.top1)
    if not units:
        return None
    values = [value for value, _ in units.values()]
    (first, clips), measured = next(iter(units.values())), [share for share in dead.values() if share is not None]
    interval = mean_interval(values) if len(values) > 1 else _over_clips(first, clips)
    failed = failed_seeds([fmean(row) for row in seeds.values()])
    return Summary(fmean(values), interval, len(values), iqm(values), failed, fmean(measured) if measured else None)


def _over_clips(top1: float, clips: int) -> tuple[float, float]:
    """Return Wilson's interval of an accuracy; NaN where it is unknown."""
    return (math.nan, math.nan) if math.isnan(top1) else wilson(round(top1 * clips), clips)


def paired_units(scores: Scores, baseline: Scores) -> Iterator[tuple[float, float, bool]]:
    """Yield, for each unit that both settings have, their accuracies over the repeats that both have, and whether these
    are the same measurements. Units with the same two sets of measurements count once."""
    seen: set[frozenset[tuple[str, str]]] = set()
    for unit, own in scores.items():
        other = baseline.get(unit, {})
        pairs = {(own[at].source, other[at].source): (own[at].top1, other[at].top1) for at in own if at in other}
        if pairs and frozenset(pairs) not in seen:
            seen.add(frozenset(pairs))
            same = all(a == b for a, b in pairs)
            yield fmean(a for a, _ in pairs.values()), fmean(b for _, b in pairs.values()), same


def read_counts(plan: Plan, store: Store) -> dict[str, Counts]:
    """Read how many clips of each group each network of a plan has right, by the network's name. A network whose
    answers are not kept has none.

    Raises:
        StoreError: a stage is missing from the store, or damaged.
    """
    groups: list[str] = read_table(store.artifact(plan.stage("data")).read("clips.parquet"), "group")["group"]
    counts: dict[str, Counts] = {}
    for stage in plan.of_role("evaluate"):
        artifact, found = store.artifact(stage), dict[str, tuple[int, int]]()
        if "predictions.parquet" in artifact.manifest.files:
            rows = read_table(artifact.read("predictions.parquet"), "clip", "label", "predicted")
            for clip, label, predicted in zip(rows["clip"], rows["label"], rows["predicted"], strict=True):
                group = groups[int(clip)]
                right, clips = found.get(group, (0, 0))
                found[group] = (right + int(label == predicted), clips + 1)
        counts[stage.needs["network"]] = found
    return counts
