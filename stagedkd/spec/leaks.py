"""Tuning must not choose on clips that are tested: groups that validated in tuning must not be tested by a cell."""

from __future__ import annotations

from stagedkd.errors import Place, Problem
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.data import Data
from stagedkd.spec.schema.videos import Grouped, has_own

DEALT_BY = ("folds", "fold", "val_folds", "test_folds", "seed", "val_groups")  # the fields that deal groups to splits


def leak_problem(spec: Spec, tuned_on: Data, place: Place) -> Problem | None:
    """Return the problem of a cell that may test clips on which its values were chosen; None if there is none.

    Args:
        tuned_on: the section `data` with which its setting was tuned. place: that of the problem.
    """
    if spec.evaluate.split != "test" or not _may_leak(spec.data, tuned_on):
        return None
    message = "tuning chooses on clips that are tested here: its validation split is not that of the results"
    return Problem(message, place, "name groups that always validate: data.val_groups (kind: csv)")


def _may_leak(data: Data, tuned_on: Data) -> bool:
    """Return whether groups that validate with `tuned_on` can be in the test split of `data`. Simulated clips, and sets
    with an official test split, have no such groups; a set of another path has other ones."""
    if not isinstance(data, Grouped) or not isinstance(tuned_on, Grouped) or data.path != tuned_on.path:
        return False
    if not data.left_for_test or has_own(data, "test") or (has_own(data, "val") and has_own(tuned_on, "val")):
        return False
    if tuned_on.always_val and set(tuned_on.always_val) <= set(data.always_val):
        return False
    return any(getattr(data, name, None) != getattr(tuned_on, name, None) for name in DEALT_BY)
