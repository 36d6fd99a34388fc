"""Helpers of the tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from stagedkd.data.address import Address
from stagedkd.data.fingerprint import HashMemo
from stagedkd.files import FileBytes
from stagedkd.models.build import class_dims, read_pretrained
from stagedkd.models.head import Given, Head, fit_head
from stagedkd.models.network import Network
from stagedkd.models.weights import read_weights
from stagedkd.spec.schema import Arch, Architecture
from stagedkd.stages.context import Silent
from stagedkd.store.manifest import file_digest


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def files_of(store: Path) -> dict[str, bytes]:
    """The deterministic files of all artifacts of a store; fails where there are none."""
    found = {name: content for name, content in file_bytes(store).items() if "/files/" in name and name[0] != "."}
    assert found
    return found


A = TypeVar("A", bound=Architecture)


def pinned(arch: A, root: Path) -> A:
    """The architecture with the digest of its files, as the loader of specs puts it in."""
    values = arch.model_dump(exclude={"digest"})
    arch.put_digest(values, root, lambda file: file_digest(file) if file.is_file() else None)
    return arch.model_copy(update={"digest": values.get("digest", "")})


def marks(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """The files of a clip cache, as the lock names them."""
    return {path: "{}:{}".format(*HashMemo().clip(Address.read(root, path))) for path in paths}


class Heard(Silent):
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def head_of(network: Network, arch: Arch, root: Path = Path()) -> Head:
    """The head of a network for classes named c0, c1, ..."""
    count = len([*network.net.state_dict().values()][-1])  # the last layer's bias
    return Head(tuple(f"c{i}" for i in range(count)), class_dims(network, arch, count, root))


def load_weights(network: Network, path: Path, arch: Arch) -> list[str]:
    """Load a weight file; give the names of the tensors that stay new."""
    head = head_of(network, arch)
    return _load(network, read_weights(FileBytes.read(path), network, head), head)


def load_pretrained(network: Network, arch: Arch, root: Path) -> list[str]:
    """Load the weights that a model comes with; give the names of the tensors that stay new."""
    return _load(network, read_pretrained(network, arch, root), head_of(network, arch, root))


def _load(network: Network, given: Given, head: Head) -> list[str]:
    fitted = fit_head(given, head)
    fitted.load(network.net)
    return list(fitted.new)
