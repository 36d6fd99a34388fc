"""Section `data` of real videos: where they are, in which layout, and how they are split."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from stagedkd.spec.schema.base import Fraction, Section, Seed, Word

BadFiles: TypeAlias = Literal["quarantine", "strict"]
Column: TypeAlias = Literal["path", "label", "group", "split", "clean", "frames", "offset", "start", "end", "ignore"]


def _as_words(value: Any) -> Any:
    """Return a list of class names as words: the classes 0, 1, 2 may be written without quotes."""
    if not isinstance(value, list | tuple):
        return value
    items: list[Any] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items)


def _short(value: str | tuple[str, ...]) -> str:
    """Return a value for a name in the lock: a list is stood for by eight digits of its hash."""
    return value if isinstance(value, str) else hashlib.sha256("\n".join(value).encode()).hexdigest()[:8]


Pictures: TypeAlias = Annotated[str, Field(pattern=r"^[^/{}]*\{(:0[1-9]d?)?\}[^/{}]*$")]


def below(data_dir: Path, path: str) -> Path:
    """Return the absolute place of a path of the spec, without `..`, which would lead through folders that need not
    exist. Links are followed, but for the last name: the videos of a table lie beside the link to it."""
    whole = data_dir / path
    return whole.parent.resolve() / whole.name if whole.name != ".." else whole.resolve()


MEMBERS = frozenset({"left_for_test", "always_val", "left_for_val", "lock_mark", "folder_below"})  # of FoldSplit


class FoldSplit(Section):
    """Videos on the disk, split by group. The groups are shuffled by `seed` and distributed over `folds` parts, for
    each class as evenly as the groups allow. Part `fold`, and the next ones if `val_folds` is above 1, are the
    validation split. No group is ever in two splits."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})
    listed_by: ClassVar[tuple[str, ...]] = (
        "classes",
    )  # fields beside `path` that decide which clips are listed, and how
    path: Word
    """Where the videos are, relative to the data root."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    """Number of parts over which the groups are distributed."""
    fold: Annotated[int, Field(ge=0, le=999)] = 0
    """The first part of the validation split, counted from 0. Change it for cross-validation."""
    val_folds: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of parts of the validation split."""
    seed: Seed = 0
    """Seed that shuffles the groups."""
    classes: Annotated[tuple[Word, ...] | Word, BeforeValidator(_as_words)] | None = None
    """The classes in the order of their ids: a list of names, or a file with one name a line (also `NUMBER NAME`, or
    JSON), relative to the data root. Labels may then be numbers. Unset: the classes are sorted, numbers as numbers."""
    bad_files: BadFiles = "quarantine"
    """Treatment of unreadable files. quarantine: list and skip them, up to 3 files or `bad_share`. strict: stop at the
    first one."""
    bad_share: Fraction = 0.01
    """Fraction of the files that may be bad under quarantine. Raise it if many files are known to be missing."""

    @property
    def left_for_test(self) -> int:
        """Number of parts that are the test split."""
        return 0

    @property
    def always_val(self) -> tuple[str, ...]:
        """Groups that are the validation split in every fold; () if parts of the others are it."""
        return ()

    @property
    def left_for_val(self) -> int:
        """Number of parts that are the validation split."""
        return 0 if self.always_val else self.val_folds

    @property
    def lock_mark(self) -> str:
        """The end of the data set's name in stagedkd.lock. It tells apart data sets that lie in one folder."""
        given = ((name, getattr(self, name)) for name in self.listed_by)
        return "".join(f":{name}={_short(value)}" for name, value in given if value is not None)

    def folder_below(self, data_dir: Path) -> Path:
        """The folder that the paths of the clips are relative to. `data_dir` is the data root."""
        return below(data_dir, self.path)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if clashes := sorted(MEMBERS & cls.model_fields.keys()):
            raise TypeError(f"{cls.__name__} has fields that are named as members of FoldSplit: {', '.join(clashes)}")

    @model_validator(mode="after")
    def _parts(self) -> FoldSplit:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: with {self.folds} folds, it is 0 to {self.folds - 1}")
        if self.left_for_val + self.left_for_test >= self.folds:
            parts = ["val_folds"] * (not self.always_val) + ["test_folds"] * isinstance(self, Grouped)
            what = " + ".join(parts)
            raise ValueError(f"no part is left for training: {what} must be below folds")
        return self


class Grouped(FoldSplit):
    """Videos without an official split. The parts after those of the validation split are the test split."""

    test_folds: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of parts of the test split. 0: no test split."""

    @property
    def left_for_test(self) -> int:
        return self.test_folds


class Folder(Grouped):
    """A folder of videos with one folder for each class, or with such folders below `train`, `val` and `test`. A clip
    is a video, or a folder of numbered pictures. Every clip is a group of its own."""

    listed_by: ClassVar[tuple[str, ...]] = ("folders", "pictures", "classes")
    kind: Literal["folder"]
    """Videos in one folder for each class."""
    path: Word = "."
    """The folder, relative to the data root."""
    folders: Literal["classes", "splits"] | None = None
    """What the folders are. classes: each is a class. splits: `train`, `val` (or `valid`, `validation`) and `test`,
    with the classes below. Unset: told by their names and content."""
    pictures: Pictures | None = None
    """Names of the pictures of a clip, such as `img_{:05}.jpg`. Unset: told by what a folder holds, without optical
    flow."""


class Csv(Grouped):
    """A table with the columns path,label[,group][,split][,clean], or a list without a header, as SlowFast, VideoMAE
    and mmaction2 write it. An empty label means unlabelled. `clean` is 1 for a label that can be trusted and 0 for a
    noisy one. `split` is train, val or test. `start` and `end` (in seconds), or `offset` and `frames` of a folder of
    pictures, make a part of it a clip."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path", "val", "test", "videos"})
    listed_by: ClassVar[tuple[str, ...]] = ("val", "test", "videos", "columns", "pictures", "classes")
    kind: Literal["csv"]
    """Videos listed in a table."""
    path: Word
    """The table, relative to the data root."""
    val: Word | None = None
    """A second table, with the validation clips; the clips of `path` are then for training. Relative to the data
    root."""
    test: Word | None = None
    """A table with the test clips, relative to the data root."""
    videos: Word | None = None
    """The folder that paths in the tables are relative to, itself relative to the data root. Unset: the folder of the
    table `path`."""
    columns: tuple[Column, ...] | None = None
    """The columns of the tables, in order, if they have no header or another one. Unset: told by the header or the
    content."""
    val_groups: Annotated[tuple[Word, ...], BeforeValidator(_as_words), Field(min_length=1)] | None = None
    """Groups that are the validation split in every fold, so that what is chosen on them is never chosen on clips that
    another fold tests. The parts are then made of the other groups, and `val_folds` has no meaning."""
    pictures: Pictures | None = None
    """Names of the pictures of a clip that is a folder, such as `img_{:05}.jpg`. Unset: told by what it holds."""

    @property
    def always_val(self) -> tuple[str, ...]:
        return self.val_groups or ()

    def folder_below(self, data_dir: Path) -> Path:
        return below(data_dir, self.videos) if self.videos is not None else below(data_dir, self.path).parent

    @model_validator(mode="after")
    def _columns(self) -> Csv:
        named = [name for name in self.columns or () if name != "ignore"]
        if self.columns is not None and ("path" not in named or "label" not in named or len(named) > len(set(named))):
            raise ValueError("columns must name path and label, and each column once")
        if self.val_groups and self.val is not None:
            raise ValueError("val and val_groups both name the validation split")
        return self


class Ucf101(FoldSplit):
    """UCF101 (Soomro et al. 2012) with its official lists: `UCF-101/<Class>/v_<Class>_gNN_cNN.avi` beside
    `ucfTrainTestlist/`. The validation split is taken from the official training list, by group."""

    kind: Literal["ucf101"]
    """UCF101 in its official layout."""
    path: Word = "ucf101"
    """The folder that holds `UCF-101` and `ucfTrainTestlist`, relative to the data root."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """The official split, one of three."""


class Hmdb51(FoldSplit):
    """HMDB51 (Kuehne et al. 2011) with its official 70/30 lists: `<class>/*.avi` beside `testTrainMulti_7030_splits/`;
    tag 1 is training, 2 test, 0 unused. A group is a source video within a class. The validation split is taken from
    the official training clips."""

    kind: Literal["hmdb51"]
    """HMDB51 in its official layout."""
    path: Word = "hmdb51"
    """The folder that holds the classes and `testTrainMulti_7030_splits`, relative to the data root."""
    split: Annotated[int, Field(ge=1, le=3)] = 1
    """The official split, one of three."""


class Kinetics(FoldSplit):
    """Kinetics (Kay et al. 2017): `train/` and `val/` with a folder for each class, or official csv lists. A group is a
    source video. The validation split is taken from the official training clips. The test split is the official split
    `test_from`."""

    kind: Literal["kinetics"]
    """Kinetics in class folders or with its csv lists."""
    path: Word = "kinetics400"
    """The folder that holds `train`, `val` and, for lists, `annotations`, relative to the data root."""
    lists: Literal["folders", "csv"] = "folders"
    """Layout. folders: a folder for each class below each split. csv: `annotations/<split>.csv` with the columns
    label,youtube_id,time_start,time_end, and the videos below `<split>/` with or without class folders."""
    test_from: Literal["val", "test"] = "val"
    """The official split that serves as the test split; papers report on val."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 20
    """Number of parts over which the training groups are distributed."""

    @property
    def lock_mark(self) -> str:
        return f":{self.test_from}{super().lock_mark}"


class Ssv2(FoldSplit):
    """Something-Something v2 (Goyal et al. 2017): `20bn-something-something-v2/ID.webm` beside the official json lists.
    A class is a template. The test split is the official validation split; validation is taken from the official
    training clips."""

    kind: Literal["ssv2"]
    """Something-Something v2 in its official layout."""
    path: Word = "ssv2"
    """The folder that holds the videos' folder and the lists (or `labels` with them), relative to the data root."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 20
    """Number of parts over which the training clips are distributed."""


class Jester(FoldSplit):
    """Jester (Materzynska et al. 2019): `20bn-jester-v1/ID/00001.jpg` beside the official csv lists. The test split is
    the official validation split; validation is taken from the official training clips."""

    kind: Literal["jester"]
    """Jester in its official layout."""
    path: Word = "jester"
    """The folder that holds the clips' folder and the lists (or `labels` with them), relative to the data root."""
    folds: Annotated[int, Field(ge=2, le=1000)] = 20
    """Number of parts over which the training clips are distributed."""


Videos: TypeAlias = Folder | Csv | Ucf101 | Hmdb51 | Kinetics | Ssv2 | Jester


def has_own(data: object, split: Literal["val", "test"]) -> bool:
    """Return whether a section `data` names a split of its own, so that no part of the groups becomes it."""
    if isinstance(data, Csv):
        return getattr(data, split) is not None
    return isinstance(data, Folder) and data.folders == "splits"
