"""Kinds of work: each says all that the rest of the project asks of it, or the package cannot be imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, get_args

import pytest

from stagedkd.dvc.text import MANAGED_NAME
from stagedkd.plan import work
from stagedkd.plan.kind import UntrainedWork, WorkSection
from stagedkd.plan.work import KINDS
from stagedkd.spec.schema import Clip

UNION = get_args(get_args(work.Work)[0])


def silent() -> type[WorkSection]:
    class SilentWork(WorkSection):
        kind: Literal["silent"] = "silent"

    return SilentWork


def viewless() -> type[WorkSection]:
    class ViewlessWork(UntrainedWork):
        kind: Literal["viewless"] = "viewless"
        version: Literal[1] = 1

    return ViewlessWork


def misnamed() -> type[WorkSection]:
    class MisnamedWork(UntrainedWork):
        kind: Literal["mis-named"] = "mis-named"
        version: Literal[1] = 1

        @property
        def inputs(self) -> Mapping[str, tuple[str, ...]]:
            return {}

        @property
        def view(self) -> Clip | None:
            return None

    return MisnamedWork


def covering() -> type[WorkSection]:
    class CoveringWork(UntrainedWork):
        kind: Literal["covering"] = "covering"
        version: Literal[1] = 1
        epochs_run: int = 3

        @property
        def inputs(self) -> Mapping[str, tuple[str, ...]]:
            return {}

        @property
        def view(self) -> Clip | None:
            return None

    return CoveringWork


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize(
    ("define", "message"),
    [
        (silent, "SilentWork does not define: inputs, network, trainings, view, weight_files, network_file, version"),
        (viewless, "ViewlessWork does not define: inputs, view"),
        (misnamed, "MisnamedWork: the kind 'mis-named' names folders, so it may have only the letters a-z"),
        (covering, "CoveringWork has fields with names of members of WorkSection: epochs_run"),
    ],
)
def test_a_kind_that_says_too_little_cannot_be_defined(define: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        define()
    assert str(caught.value) == message


def test_a_kind_that_says_all_can_be_defined() -> None:
    class SpokenWork(WorkSection):
        network_file: ClassVar[str | None] = None
        kind: Literal["spoken"] = "spoken"
        version: Literal[1] = 1
        inputs = network = trainings = weight_files = view = property(lambda self: None)

    assert not SpokenWork().reads_lock and list(SpokenWork.model_fields) == ["kind", "version"]


def test_no_kind_is_left_out_of_the_union() -> None:
    defined = [section for section in vars(work).values() if isinstance(section, type)]
    kinds = [s for s in defined if issubclass(s, WorkSection) and "kind" in s.model_fields]
    assert set(kinds) == set(UNION) and len(set(KINDS)) == len(UNION)
    assert all(MANAGED_NAME.match(f"{kind}-0123456789ab") for kind in KINDS) and not MANAGED_NAME.match(
        "train-0123456789ab"
    )


def test_a_network_and_its_file_go_together() -> None:
    files = {section.model_fields["kind"].default: section.network_file for section in UNION if section.network_file}
    assert files == {"teach": "teacher.safetensors", "distill": "student.safetensors"}
    untrained = {section for section in UNION if issubclass(section, UntrainedWork)}
    assert all(section.network_file is None for section in untrained)
