"""What every kind of work must state about itself, and the sections that several kinds share. The kinds are in work.py.

The fields of a work enter its key, except those listed in `unkeyed`, such as names. Because each kind also states
everything that the rest of the project must know about it (see `WorkSection`), no other module has to ask which kind a
work is.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from stagedkd.plan.lock import data_id
from stagedkd.spec.schema import Arch, Clip, Data, Input, Losses, Section, Train

KIND_FORM = "[a-z]+"  # the form of a kind's name, with which the names of folders begin
Cut: TypeAlias = tuple[tuple[str, ...], ...]


class Weights(Section):
    """A weight file: its name as the user wrote it, and its SHA-256; None if the lock does not have it. `version` is
    raised when a file is fitted to a network in another way."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    sha256: str | None
    version: Literal[2] = 2


class PhaseWork(Section):
    """One phase of training. Substages are counted from 0.

    Attributes:
        epochs: the epochs that the learning-rate schedule is made for.
        stop: the number of these epochs that are run; None means all.
        trained: the substages that are trained. If a whole network is one substage, () trains its head alone.
        frozen: the substages that run frozen.
        pairs: the pairs (student's substage, teacher's substage) that are compared.
        ramp: the epochs over which a pair's feature losses rise from 0, one pair after the other; None: all at once.
        head: whether the head is run and trained, so that there are logits.
        quantised: int8: the network computes rounded numbers from this phase on.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset({"name"})
    name: str
    epochs: int
    stop: int | None = None
    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    ramp: float | None = None
    head: bool
    losses: Losses
    train: Train
    quantised: Literal["int8"] | None = None

    @property
    def run_epochs(self) -> int:
        """The number of epochs that are run."""
        return self.stop or self.epochs


@dataclass(frozen=True)
class OutputNetwork:
    """The network that a stage makes: its architecture, and its input if it does not see the spec's clips."""

    arch: Arch
    input: Input | None


class WorkSection(Section):
    """The base of all kinds of work. Its members are what each kind must state about itself, beside the fields that are
    its key.

    A class that has a field `kind` but lacks a member without a default raises TypeError when it is defined. So does a
    class with a field that has the name of a member: pydantic would take the member for the field's default, and that
    changes keys.
    """

    network_file: ClassVar[str | None]  # the artifact's file that holds the network; None if it makes none

    @property
    @abstractmethod
    def network(self) -> OutputNetwork | None:
        """The network that this work makes; None if it makes none."""

    @property
    @abstractmethod
    def trainings(self) -> tuple[PhaseWork, ...]:
        """The phases of training; () if nothing is trained."""

    @property
    @abstractmethod
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        """The weight files that training starts from, each with the architecture that it belongs to."""

    @property
    @abstractmethod
    def view(self) -> Clip | None:
        """The clips that the networks of this work see; None if it has no network."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, tuple[str, ...]]:
        """The kinds of work that each input may be of, by the name of the input; "" among them: it may be missing."""

    @property
    def data_set(self) -> Data | None:
        """The data set that this work reads from the disk; None if its data come from another stage."""
        return None

    @property
    def epochs_run(self) -> int:
        """The epochs of all trainings together."""
        return sum(phase.run_epochs for phase in self.trainings)

    @property
    def reads_lock(self) -> bool:
        """Whether this work's own fields come from stagedkd.lock: it reads a data set that needs an entry, or weight
        files."""
        return bool(self.weight_files) or (self.data_set is not None and data_id(self.data_set) is not None)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "kind" not in cls.model_fields:
            return  # the base of several kinds
        missing = sorted(cls.__abstractmethods__)
        missing += [name for name in WorkSection.__annotations__ if not hasattr(cls, name)]
        missing += [name for name in ("version",) if name not in cls.model_fields]
        if missing:
            raise TypeError(f"{cls.__name__} does not define: {', '.join(missing)}")
        clashes = sorted(set(cls.model_fields) & set(vars(WorkSection)))
        if clashes:
            raise TypeError(f"{cls.__name__} has fields with names of members of WorkSection: {', '.join(clashes)}")
        kind = str(cls.model_fields["kind"].default)
        if not re.fullmatch(KIND_FORM, kind):
            raise TypeError(f"{cls.__name__}: the kind '{kind}' names folders, so it may have only the letters a-z")


class UntrainedWork(WorkSection):
    """The base of the kinds of work that train nothing and make no network."""

    network_file: ClassVar[str | None] = None

    @property
    def network(self) -> OutputNetwork | None:
        return None

    @property
    def trainings(self) -> tuple[PhaseWork, ...]:
        return ()

    @property
    def weight_files(self) -> tuple[tuple[Arch, Weights], ...]:
        return ()
