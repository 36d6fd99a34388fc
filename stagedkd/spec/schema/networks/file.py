"""The family `file`: a network that a Python file of the user builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stagedkd.spec.own_code import project_module
from stagedkd.spec.schema.base import Count, Word
from stagedkd.spec.schema.networks.base import (
    Architecture,
    Cut,
    DigestOf,
    StudentFields,
    TeacherFields,
    UserFiles,
    put_file_digest,
)


class FileArch(Architecture):
    """A network of your own. `check`, `plan` and `explain` never execute the file; `run` does."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path", "params"})
    arch: Literal["file"]
    """A network of your own, from a Python file."""
    path: Word
    """The Python file, in the project folder, with a function `build(classes, **args) -> nn.Module`. The named children
    of the module are the blocks, and the last of them is the head."""
    args: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of `build`."""
    params: Count | None = None
    """Number of parameters without the head; needed for shares in `cascade` and for `cascade: auto`."""
    digest: str = Field(default="", repr=False)  # set by the loader: SHA-256 of the file, which enters the key
    revision: Literal[2] = Field(default=2, repr=False)  # raised when the family computes other bits

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
    """A student or assistant of your own."""


class FileTeacher(TeacherFields, FileArch):
    """A teacher of your own."""


def put_code_digest(values: dict[str, Any], root: Path, digest_of: DigestOf) -> tuple[str, str, str]:
    """Put the digest of the Python file `path` into the values of the user's own network or loss. A file that imports
    other modules of the project is refused, since no key would stand for them.

    See `Architecture.put_digest`.
    """
    problem = put_file_digest(values, "path", "a Python file", root, digest_of)
    if "digest" in values and (module := project_module(root / values["path"], root)):
        what = f"{values['path']} imports {module} of the project, which could change without a new key"
        return "path", what, "put its code into the file, or install it as a package"
    return problem
