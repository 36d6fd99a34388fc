"""The family `outputs`: a teacher whose outputs were computed elsewhere and are read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from stagedkd.spec.schema.base import Count, Word
from stagedkd.spec.schema.networks.base import Architecture, Cut, DigestOf, TeacherFields, UserFiles, put_file_digest


class OutputsArch(Architecture):
    """The outputs of a vision-language model, an ensemble or an API, by clip, from a file: scores of the classes, or
    embeddings. It has no feature maps, it is not trained here, and it gives a clip the same outputs in every view."""

    only_teaches: ClassVar[bool] = True
    unkeyed: ClassVar[frozenset[str]] = frozenset({"outputs", "params"})
    arch: Literal["outputs"]
    """Outputs from a file."""
    outputs: Word
    """A .csv, .parquet or .safetensors file in the project, keyed by its content, with a row for each training clip:
    the column `path` (the address of the clip) or `clip` (its number, as in predictions.parquet), and a column for each
    class, named like it; or, in parquet, one column of lists, named like `kind`, with the classes in `classes`.
    Embeddings are all other columns of a .csv in their order, or a column of lists named `embeddings`. In safetensors
    the columns are the tensors `clip` and `logits`, as in kept outputs of one view. Rows for other clips are allowed;
    those of the evaluated split give its accuracy."""
    kind: Literal["probabilities", "logits", "embeddings"]
    """probabilities: rows of sum 1, within 0.001; their logits are log(max(p, 1e-6)). logits: any finite numbers.
    embeddings: finite numbers, as many for each clip; for losses with `taps: embedding`."""
    classes: Annotated[tuple[Word, ...], Field(min_length=1)] | None = None
    """The classes in the order of the lists of probabilities or logits. Unset: the columns name them."""
    params: Count | None = None
    """Number of parameters of what made the outputs; needed for shares in `cascade` and for `cascade: auto`."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key

    @property
    def embeds(self) -> bool:
        """Whether the outputs are embeddings, not scores of the classes."""
        return self.kind == "embeddings"

    @property
    def block_names(self) -> tuple[str, ...]:
        return ()

    @property
    def natural_cut(self) -> Cut:
        return ()

    @property
    def strides(self) -> None:
        return None

    @property
    def trunk_params(self) -> int | None:
        return self.params

    @property
    def title(self) -> str:
        return f"{self.kind} from {self.outputs}"

    @property
    def user_files(self) -> UserFiles:
        return UserFiles(self.outputs, self.digest, code=False)

    @classmethod
    def put_digest(cls, values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
        name = values.get("outputs")
        if isinstance(name, str) and name and Path(name).suffix.lower() not in (".csv", ".parquet", ".safetensors"):
            return "outputs", f"{name} is no .csv, .parquet or .safetensors file", "write the outputs as one of these"
        return put_file_digest(values, "outputs", "a file", root, digest_of)


class OutputsTeacher(TeacherFields, OutputsArch):
    """A teacher from elsewhere, by its outputs alone."""

    epochs: Annotated[int, Field(ge=0, le=0)] = 0
    """Always 0: it is not trained here."""
