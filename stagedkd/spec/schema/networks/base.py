"""What every network says of itself (`Architecture`), and what a network can say in a role: teacher or student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field

from stagedkd.spec.schema.base import Epochs, Section, Seed, Weight, Word
from stagedkd.spec.schema.training import TrainPatch
from stagedkd.spec.schema.views import Input

Cut: TypeAlias = tuple[tuple[str, ...], ...]
DigestOf: TypeAlias = Callable[[Path], str | None]


@dataclass(frozen=True)
class UserFiles:
    """What a network is read from in the project: `path` of the file or folder, `digest` of its content as the spec
    was loaded, `code`: it is a Python file that building the network runs."""

    path: str
    digest: str
    code: bool


class Architecture(Section):
    """Base of the architectures: the facts that a plan needs about a network, without building it.

    A family must define the abstract members, or it fails at import; the others are for families that have weights, a
    fixed input, a width, or files of the user. A field with the name of a member fails at import, too: pydantic would
    take the member for the default of the field, which would change keys.
    """

    @property
    @abstractmethod
    def block_names(self) -> tuple[str, ...] | None:
        """The blocks in order, without the head; None where only the built network knows them."""

    @property
    @abstractmethod
    def natural_cut(self) -> Cut:
        """The finest automatic cut: a substage wherever stride or width changes, or equal runs of layers where neither
        does; () where only the built network knows its blocks."""

    @property
    @abstractmethod
    def strides(self) -> dict[str, int] | None:
        """Reduction of height and width behind each block, 1 or more; None where only the built network knows."""

    @property
    @abstractmethod
    def trunk_params(self) -> int | None:
        """Parameters without the head; None where the user has to state them and has not."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The network in a few words, for reports."""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of torchvision's weights that fit; () where there are none."""
        return ()

    @property
    def torchvision_name(self) -> str | None:
        """The network under which torchvision keeps the weights of `weight_names`; None where there are none."""
        return None

    @property
    def pretrained_from(self) -> str:
        """The model whose weights the network starts from when `weights` is unset; "" for a random start."""
        return ""

    @property
    def unpinned_model(self) -> str:
        """The model that weights come from, if its name alone is keyed and not its content; else ""."""
        return ""

    @property
    def fixed_input(self) -> tuple[int, int] | None:
        """(frames, size in pixels) of the only clip that the network takes; None where it takes others."""
        return None

    def widened(self, trunk_params: float) -> Self | None:
        """The same shape at the width whose trunk has about so many parameters; None where the family has no width."""
        return None

    @property
    def user_files(self) -> UserFiles | None:
        """The file or folder of the project that the network is read from; None where there is none."""
        return None

    @classmethod
    def put_digest(cls, values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
        """Put the digest of the user's files into the values of a network. Nothing is imported, run or fetched.

        Args:
            values: the fields of a network of this family, not validated yet.
            root: the project's folder.
            digest_of: SHA-256 of a file below the root, None where it is not there or not ours to read.
        Returns:
            (field, fault, hint): the faulty field and what is wrong with it; fault is "" where nothing is.
        """
        return "", "", ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        members = {name for name in vars(Architecture) if not name.startswith("_")} - vars(Section).keys()
        if clashes := sorted(members & cls.model_fields.keys()):
            raise TypeError(f"{cls.__name__} must name these fields otherwise: {', '.join(clashes)}; see Architecture")
        if missing := sorted(cls.__abstractmethods__):
            raise TypeError(f"{cls.__name__} must define {', '.join(missing)}; see Architecture")


class NetworkFields(Section):
    """What a network can say in any role."""

    weights: Word | None = None
    """Where training starts from: a torchvision weight name (ImageNet's for `tsm`), or the path of a .safetensors or
    .pth file."""
    substages: Annotated[tuple[Annotated[tuple[Word, ...], Field(min_length=1)], ...], Field(min_length=1)] | None = (
        None
    )
    """Runs of block names, in order, that are compared and trained as one; unset: cut where stride or width changes."""
    input: Input | None = None
    """What it makes of the shared view; unset: the view as it is."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this network."""


class TeacherFields(NetworkFields):
    """The teacher."""

    epochs: Annotated[int, Field(ge=0, le=100_000)]
    """Epochs of its training by cross-entropy; 0 takes the weights as they are."""
    labels: Literal["same", "all"] = "same"
    """same: the weak labels of `labels`; all: the true labels of all training clips (a teacher from elsewhere, said in
    every report)."""
    seed: Seed = 0
    """Seed of its initialisation and order; not that of the student, so that student seeds share a teacher."""
    share: Weight = 1.0
    """Its weight among several teachers (`co_teachers`)."""


class StudentFields(NetworkFields):
    """A student or assistant."""

    epochs: Epochs | None = None
    """Epochs of the whole hop, over all its phases. A phase without `epochs` takes what the others leave."""


def is_weight_file(name: str) -> bool:
    """Whether `weights: name` is a path, not a name of torchvision."""
    return PurePath(name).suffix in (".safetensors", ".pth", ".pt")


def merge_cut(stages: Cut, parts: int) -> Cut:
    """Merge natural stages into `parts` runs of even depth. Raises ValueError: there are fewer stages than parts."""
    count = len(stages)
    if parts > count:
        raise ValueError(f"it has {count} natural substages, fewer than {parts}: declare its substages")
    ends = [round(i * count / parts) for i in range(parts + 1)]
    return tuple(tuple(name for stage in stages[a:b] for name in stage) for a, b in pairwise(ends))
