"""The user's own files that a spec names: their content enters the keys. They are read, but never run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from stagedkd.errors import Problem
from stagedkd.spec.fields import HIDDEN
from stagedkd.spec.problems import problem_at
from stagedkd.spec.schema.losses.clipwise import put_weights_digest
from stagedkd.spec.schema.networks import family_of
from stagedkd.spec.schema.networks.file import put_code_digest
from stagedkd.spec.yaml import Node, Path_


class OwnFiles:
    """The files below the project's folder `root` that cells name, each hashed once: `digests` by path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.digests: dict[Path, str] = {}

    def put_digests(self, values: dict[str, Any], tree: Node) -> list[Problem]:
        """Put the digests of the user's files into the values of networks, of the losses `file` and of `weigh`.

        Args:
            values: an unvalidated spec, which is changed in place. tree: the same, with places.
        Returns:
            what is wrong with the files, at its places.
        """
        problems: list[Problem] = []
        networks = [(path, network, family_of(network.get("arch"))) for path, network in _networks(values)]
        putters = [(path, network, family.put_digest) for path, network, family in networks if family]
        putters += [(path, loss, put_code_digest) for path, loss in _user_losses(values)]
        putters += [(path, weigh, put_weights_digest) for path, weigh in _weight_files(values)]
        for path, section, put_digest in putters:
            for hidden in sorted(HIDDEN & section.keys()):
                message = f"'{hidden}' cannot be set: stagedkd sets it"
                problems.append(problem_at(tree, (*path, hidden), message, "remove it", key=True))
            name, message, hint = put_digest(section, self.root, self.digest)
            problems += [problem_at(tree, (*path, name), message, hint)] if message else []
        return problems

    def digest(self, file: Path) -> str | None:
        """Return the SHA-256 of a file below the root; None if it is missing, unreadable, or outside the root."""
        if file not in self.digests:
            try:
                if not file.resolve().is_relative_to(self.root.resolve()) or not file.is_file():
                    return None  # a pipe would be waited for
                with file.open("rb") as stream:
                    self.digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
            except (OSError, ValueError, RuntimeError):
                return None
        return self.digests[file]


def _networks(values: Mapping[str, Any]) -> Iterable[tuple[Path_, dict[str, Any]]]:
    """Iterate over the networks of an unvalidated spec, each with its path."""
    networks: list[tuple[Path_, Any]] = [(("teacher",), values.get("teacher")), (("student",), values.get("student"))]
    for name in ("co_teachers", "cascade"):
        listed = values.get(name)
        row = cast("tuple[Any, ...]", listed) if isinstance(listed, tuple) else ()
        networks += [((name, i), network) for i, network in enumerate(row)]
    for path, network in networks:
        if isinstance(network, dict):
            yield path, network


def _user_losses(values: Mapping[str, Any]) -> Iterable[tuple[Path_, dict[str, Any]]]:
    """Iterate over the losses `file` of an unvalidated spec, each with its path."""
    distill = _map(values.get("distill"))
    for name, phase in _map(distill.get("phases")).items():
        loss = _map(_map(phase).get("losses")).get("file")
        if isinstance(loss, dict):
            yield ("distill", "phases", name, "losses", "file"), cast("dict[str, Any]", loss)


def _weight_files(values: Mapping[str, Any]) -> Iterable[tuple[Path_, dict[str, Any]]]:
    """Iterate over the sections `weigh` of an unvalidated spec that are maps, each with its path."""
    for name, phase in _map(_map(values.get("distill")).get("phases")).items():
        for loss, section in _map(_map(phase).get("losses")).items():
            weigh = _map(section).get("weigh")
            if isinstance(weigh, dict):
                yield ("distill", "phases", name, "losses", loss, "weigh"), cast("dict[str, Any]", weigh)


def _map(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
