"""The family `file`: a network of the user's own, built by a Python file of the project."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stagedkd.spec.schema.base import Count, Word
from stagedkd.spec.schema.networks.base import Architecture, Cut, DigestOf, StudentFields, TeacherFields, UserFiles


class FileArch(Architecture):
    """One's own network. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path", "params"})
    arch: Literal["file"]
    """A network of one's own, from a Python file."""
    path: Word
    """The file, below the project's folder, with `build(classes, **args) -> nn.Module` whose named children are the
    blocks, the last of them the head."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of `build`."""
    params: Count | None = None
    """Parameters without the head; wanted where a share of them is asked for."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key

    @property
    def block_names(self) -> None:
        return None

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
        return self.path

    @property
    def user_files(self) -> UserFiles:
        return UserFiles(self.path, self.digest, code=True)

    @classmethod
    def put_digest(cls, values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
        return put_code_digest(values, root, digest_of)


class FileStudent(StudentFields, FileArch):
    """A student or assistant of one's own."""


class FileTeacher(TeacherFields, FileArch):
    """A teacher of one's own."""


def put_code_digest(values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
    """Put the digest of the Python file `path` into the values of a network or loss of the user's own; see
    `Architecture.put_digest`."""
    name = values.get("path")
    if not isinstance(name, str) or not name:
        return "", "", ""  # for validation to refuse
    digest = digest_of(root / name)
    if digest is None:
        return "path", f"{name} is no file below the specs' root", "code of one's own lies in the project"
    values["digest"] = digest
    return "", "", ""
