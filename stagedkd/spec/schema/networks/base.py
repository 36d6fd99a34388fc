"""The facts of every architecture (`Architecture`), and the fields of a network as a teacher or a student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, Tag, model_validator

from stagedkd.spec.schema.base import Count, Epochs, Section, Seed, Weight, Word, by_form
from stagedkd.spec.schema.training import TrainPatch
from stagedkd.spec.schema.views import Input, Size

Cut: TypeAlias = tuple[tuple[str, ...], ...]
DigestOf: TypeAlias = Callable[[Path], str | None]
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".pyth", ".bin", ".ckpt", ".tar")  # upper case, too; as in .pth.tar


@dataclass(frozen=True)
class UserFiles:
    """The files of the project from which a network is made.

    `path` is the file or folder, `digest` that of its content when the spec was loaded. `code` tells whether it is a
    Python file, which runs when the network is built.
    """

    path: str
    digest: str
    code: bool


class Architecture(Section):
    """Base of the architectures: the facts that a plan needs about a network, without building it.

    A family that does not define the abstract members fails at import. The other members are for families with weights,
    a fixed input, a width, or files of the user. A field with the name of a member also fails at import: pydantic would
    take the member as the default of the field, which would change keys.
    """

    only_teaches: ClassVar[bool] = False  # whether there is no network to build or to train, only outputs

    @property
    @abstractmethod
    def block_names(self) -> tuple[str, ...] | None:
        """The blocks in order, without the head; None if only the built network knows them."""

    @property
    @abstractmethod
    def natural_cut(self) -> Cut:
        """The finest automatic cut: a new substage wherever stride or width changes, or equal runs of layers if neither
        changes; () if only the built network knows its blocks."""

    @property
    def mergeable_cut(self) -> Cut:
        """The runs that a number of substages merges; the natural cut, unless that is merged from finer ones."""
        return self.natural_cut

    @property
    @abstractmethod
    def strides(self) -> dict[str, int] | None:
        """Reduction of height and width after each block, 1 or more; None if only the built network knows it."""

    @property
    @abstractmethod
    def trunk_params(self) -> int | None:
        """Number of parameters without the head; None if the user must give it and has not."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A short description of the network, for reports."""

    @property
    def linear_head(self) -> bool:
        """Whether the head is the mean over the positions of the last map and a linear layer, so that every position
        has logits; False also if only the built network knows it."""
        return False

    @property
    def weight_names(self) -> tuple[str, ...]:
        """The names of torchvision's weights that fit; () if there are none."""
        return ()

    @property
    def weight_classes(self) -> int | None:
        """The number of classes of the weights of `weight_names`; None if there are none."""
        return None

    @property
    def torchvision_name(self) -> str | None:
        """The network to which the weights of `weight_names` belong in torchvision; None if there are none."""
        return None

    @property
    def pretrained_from(self) -> str:
        """The model whose weights the network starts from when `weights` is unset; "" for a random start."""
        return ""

    @property
    def unpinned_model(self) -> str:
        """The model that weights come from, if only its name is keyed and not its content; else ""."""
        return ""

    @property
    def runs_from_maps(self) -> bool | None:
        """Whether its later blocks can run from a feature map, as the loss `graft` needs; None if only the built
        network knows."""
        return True

    @property
    def fixed_input(self) -> tuple[int, Size] | None:
        """(frames, size) of the only clip that the network takes, the size as in `Clip.seen`; None if it takes others
        or if only the built network knows."""
        return None

    @property
    def least_input(self) -> tuple[int, int]:
        """(frames, height and width in pixels) of the smallest clip that the network takes."""
        return 1, 8

    def widened(self, trunk_params: float) -> Self | None:
        """Return the same shape at the width whose trunk has about `trunk_params` parameters; None without a width."""
        return None

    @property
    def widths(self) -> tuple[tuple[int, str], ...]:
        """(trunk parameters, what sets them) of every network that `widened` may return, smallest first; () without a
        width."""
        return ()

    @property
    def user_files(self) -> UserFiles | None:
        """The file or folder of the project from which the network is made; None if there is none."""
        return None

    @classmethod
    def put_digest(cls, values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
        """Put the digest of the user's files into the values of a network. Nothing is imported, run or downloaded.

        Args:
            values: the fields of a network of this family, before validation.
            root: the project's folder.
            digest_of: gives the SHA-256 of a file below the root; None if it is missing, unreadable or outside it.
        Returns:
            (field, message, hint): the field with a problem, and what it is; message is "" if there is no problem.
        """
        return "", "", ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        members = {name for name in vars(Architecture) if not name.startswith("_")} - vars(Section).keys()
        if clashes := sorted(members & cls.model_fields.keys()):
            raise TypeError(f"{cls.__name__} must rename these fields: {', '.join(clashes)}; see Architecture")
        if missing := sorted(cls.__abstractmethods__):
            raise TypeError(f"{cls.__name__} must define {', '.join(missing)}; see Architecture")


Runs: TypeAlias = Annotated[tuple[Annotated[tuple[Word, ...], Field(min_length=1)], ...], Field(min_length=1)]
Substages: TypeAlias = Annotated[
    Annotated[Annotated[int, Field(ge=1)], Tag("number")] | Annotated[Runs, Tag("list")],
    by_form("a number, or a list of runs of block names"),
]


class NetworkFields(Section):
    """The fields of a network in any role."""

    weights: Word | None = None
    """Weights from which training starts: a name of torchvision's weights (for `tsm`, its ImageNet weights), or the
    path of a file: .safetensors, .pth, .pt, .pyth, .bin, .ckpt or .tar."""
    substages: Substages | None = None
    """The substages: runs of blocks that are compared and trained together. A list of runs of block names, in order, or
    the number of substages: a number cuts wherever stride or width changes (a transformer: after every layer) and
    merges neighbours evenly. Unset: a cut wherever stride or width changes (a transformer: four equal groups)."""
    input: Input | None = None
    """The input that the network derives from the shared view. Unset: the view as it is."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this network."""


class DeclaredLabels(Section):
    """The labels behind weights that were made elsewhere, as you know them. They change no number: they are for the
    report."""

    source: Word
    """The data set, such as Kinetics-400."""
    count: Count
    """Number of labelled clips."""

    @property
    def title(self) -> str:
        """In words, such as `240,000 of Kinetics-400 (declared)`."""
        return f"{self.count:,} of {self.source} (declared)"


class TeacherFields(NetworkFields):
    """The teacher."""

    epochs: Annotated[int, Field(ge=0, le=100_000)]
    """Epochs of its training by cross-entropy. 0: the weights are used as they are, and must be for the classes of the
    data."""
    labels: Annotated[
        Annotated[Literal["same", "all", "refined"], Tag("word")] | Annotated[DeclaredLabels, Tag("map")],
        by_form("same, all, refined or a map of source and count"),
    ] = "same"
    """Labels of its training. same: the weak labels of `labels`. all: the true labels of all training clips, as a
    teacher from elsewhere would have; every report says so. refined: the labels that the last round of `refine`
    accepts, soft or hard as its `targets` say, and the clean ones; it sees no other clips. A map declares the labels
    behind its weights, such as {source: Kinetics-400, count: 240000}: every report says so, and any further training
    gets the weak labels."""
    seed: Seed = 0
    """Seed of its initialisation and of the order of its clips. It is not the student's seed, so that all student seeds
    have the same teacher."""
    trains: Literal["all", "head"] = "all"
    """The part that its training changes. head: a linear probe: the head alone is trained, and all blocks stay as the
    weights give them, in eval mode, so that no statistics of BatchNorm move. It needs weights."""
    sees: Literal["same", "others"] | None = None
    """The training clips that it may see, where `student.sees` names a part. same: the part of the student. others: the
    clips that the student does not see, as a teacher from elsewhere. Unset: all of them."""
    share: Weight = 1.0
    """Its weight among several teachers (`co_teachers`)."""

    @property
    def declared(self) -> DeclaredLabels | None:
        """The labels behind its weights, where the spec declares them."""
        return self.labels if isinstance(self.labels, DeclaredLabels) else None

    @property
    def trains_on(self) -> Literal["same", "all", "refined"]:
        """The labels of its training here."""
        return "same" if isinstance(self.labels, DeclaredLabels) else self.labels


class Sees(Section):
    """The part of the training clips that a network may see: a number of clips (a bare number), or a fraction of them.

    `labels.seed` draws them. Single clips are drawn in the proportions of the given labels, clips without one being one
    more class. With `labels.by: group` whole groups are drawn, and the number is met as closely as these allow."""

    bare: ClassVar[str | None] = "count"
    count: Count | None = None
    """Number of clips."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Fraction of the training clips, rounded to whole clips; at least one."""

    @model_validator(mode="before")
    @classmethod
    def _bare_count(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.count is None) == (self.fraction is None):
            raise ValueError("give count or fraction, one of them: for example 80, or {fraction: 0.1}")
        return self

    @property
    def title(self) -> str:
        """In words, such as `80` or `10%`."""
        return str(self.count) if self.count else f"{100 * (self.fraction or 0.0):g}%"

    def clips_of(self, total: int) -> int:
        """Return the number of clips out of `total`; more than `total` if there are too few."""
        return self.count or max(1, round((self.fraction or 0.0) * total))


class Quantise(Section):
    """Fine-tuning for int8 in a last phase, which is named `quantise`: weights are rounded to 7 bits for each output
    channel (decision 34), activations to 8 bits for each tensor, and the teacher guides on with the losses of the phase
    before. The ranges of activations are found on training clips at its start. BatchNorms keep their statistics."""

    bare: ClassVar[str | None] = "to"
    to: Literal["int8"]
    """The numbers that the runtime computes with."""
    epochs: Epochs | None = None
    """Epochs of the phase, beyond those of the hop. Unset: a tenth of the hop's, at least one."""
    train: TrainPatch = TrainPatch()
    """Overrides of `train` for this phase. Unset, `lr` is a tenth of the phase before, and there is no warm-up.
    Precision is always fp32, since halves cannot hold all products of bytes."""

    @model_validator(mode="before")
    @classmethod
    def _bare_word(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value


class StudentFields(NetworkFields):
    """A student or assistant."""

    epochs: Epochs | None = None
    """Epochs of the whole hop, over all phases. A phase without `epochs` gets what the other phases leave."""
    sees: Sees | None = None
    """The part of the training clips that it may see in its hop; an epoch is that long. It also holds for the control
    and for assistants that say nothing else. Refinement sees all training clips, and so does a teacher
    without `sees`. Unset: all of them."""
    quantise: Quantise | None = None
    """int8: it is fine-tuned for int8 in a last phase, and computes rounded numbers from then on; or a map with the
    settings of that phase. For the student alone; the control and refinement stay in float32. Unset: float32."""


def put_file_digest(
    values: dict[str, Any], field: str, what: str, root: Path, digest_of: DigestOf
) -> tuple[str, str, str]:
    """Put the digest of the file that a field names into the values of its section; see `Architecture.put_digest`.

    Args:
        what: the kind of file, for the hint, such as `a Python file`.
    """
    name = values.get(field)
    if not isinstance(name, str) or not name:
        return "", "", ""  # validation will refuse it
    digest = digest_of(root / name)
    if digest is None:
        return field, f"{name} is not a file in the project", f"give the path of {what} in the project"
    values["digest"] = digest
    return "", "", ""


def is_weight_file(name: str) -> bool:
    """Return whether `weights: name` is a path, and not one of torchvision's names."""
    return PurePath(name).suffix.lower() in WEIGHT_SUFFIXES


def merge_cut(substages: Cut, parts: int) -> Cut:
    """Merge natural substages into `parts` runs of even depth. Raises ValueError if there are fewer substages."""
    count = len(substages)
    if parts > count:
        raise ValueError(f"it has {count} natural substages, fewer than {parts}: declare its substages")
    ends = [round(i * count / parts) for i in range(parts + 1)]
    return tuple(tuple(name for substage in substages[a:b] for name in substage) for a, b in pairwise(ends))
