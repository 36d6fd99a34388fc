"""Folds that take turns, `grid.folds`, beside tuning: what is tuned must not be chosen on clips that a fold tests."""

from __future__ import annotations

from collections.abc import Iterable

from stagedkd.errors import Problem
from stagedkd.spec.grid import FOLD, Axes
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.videos import Csv, Folder, Grouped


def folds_problem(axes: Axes, specs: Iterable[Spec], *, tunes: bool) -> Problem | None:
    """Return the problem of a grid whose folds test the clips of which others choose; None if there is none.

    Args:
        specs: those of the cells. tunes: whether the file has a section `tune` or takes a tuned file.
    """
    axis = next((axis for axis in axes.axes if axis.name == FOLD), None)
    if axis is None or not tunes or not any(_takes_turns(spec) for spec in specs):
        return None
    message = "tuning would choose on clips that another fold tests: validation takes turns with the test split"
    hint = "name groups that are always validation, data.val_groups (kind: csv), or set evaluate.split: val"
    return Problem(message, axis.place, hint)


def _takes_turns(spec: Spec) -> bool:
    """Return whether a group can be validation in one fold and test in another."""
    data = spec.data
    if not isinstance(data, Grouped) or spec.evaluate.split != "test":
        return False
    if (isinstance(data, Csv) and data.val is not None) or (isinstance(data, Folder) and data.folders == "splits"):
        return False  # it has a validation split of its own
    return data.left_for_test > 0 and data.left_for_val > 0
