"""Tuning must not choose on clips that are tested: groups that validated in tuning must not be tested by a cell."""

from __future__ import annotations

from stagedkd.errors import Place, Problem
from stagedkd.spec.schema import Spec
from stagedkd.spec.schema.data import Data
from stagedkd.spec.schema.videos import Csv, Grouped, has_own

# The fields that deal groups to splits; labels and classes do, too, since parts are alike in their classes.
DEALT_BY = ("folds", "fold", "val_folds", "test_folds", "seed", "val_groups", "columns", "classes")
MESSAGE = "tuning chooses on clips that are tested here: its validation split is not that of the results"


def leak_problem(spec: Spec, tuned_on: Data, place: Place) -> Problem | None:
    """Return the problem of a cell that may test clips on which its values were chosen; None if there is none. Of two
    tables nobody knows whether they list the same videos: that is a note.

    Args:
        tuned_on: the section `data` with which its setting was tuned. place: that of the problem.
    """
    if spec.evaluate.split != "test":
        return None
    if _other_list(spec.data, tuned_on):
        return Problem(MESSAGE, place, f"tune on data.split {getattr(spec.data, 'split', '')}, or evaluate on val")
    if _may_leak(spec.data, tuned_on):
        return Problem(MESSAGE, place, "name groups that always validate: data.val_groups (kind: csv)")
    if isinstance(spec.data, Csv) and isinstance(tuned_on, Csv) and spec.data.path != tuned_on.path:
        message = f"tuned values were chosen on validation clips of {tuned_on.path}; none of them may be tested here"
        return Problem(
            message, place, f"see that no video of both is in the test split of {spec.data.path}", severity="note"
        )
    return None


def _other_list(data: Data, tuned_on: Data) -> bool:
    """Return whether a set is tested by another official list than it was tuned beside. What validates is taken from
    the training list, and the clips of one training list are in the test lists of the others."""
    return data.kind == tuned_on.kind and getattr(data, "split", None) != getattr(tuned_on, "split", None)


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
