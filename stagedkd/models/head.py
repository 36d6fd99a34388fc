"""The head of a network that starts from weights: for which classes it is, and in which order."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stagedkd.errors import DataError
from stagedkd.models.weight_file import Content, shown
from stagedkd.plan.lock import Lock
from stagedkd.spec.families import class_names
from stagedkd.spec.schema import Simulated

OWN = "stagedkd"  # the metadata of our own files
DEEPEST = 4  # dicts in dicts in which the names of classes are looked for
BY_OUTPUT = frozenset({"id2label", "idx2label", "idx_to_class", "classes", "class_names", "categories"})
BY_NAME = frozenset({"class_to_idx", "label2id", "classes"})


@dataclass(frozen=True)
class Head:
    """The outputs that a network must have.

    classes: the classes of the data, in the order of the outputs. dims: for each tensor with a part for each class, the
    dimension that counts the classes.
    """

    classes: tuple[str, ...]
    dims: Mapping[str, int]


@dataclass(frozen=True)
class Given:
    """What weights give a network.

    tensors: by the network's names, in its shapes and types. new: the network's tensors that the weights lack, or have
    for another number of classes. outputs: the number of outputs of their head; None if they have none. classes: the
    names of the outputs, in order; () if the weights do not name them. notes: what was done to the weights.
    """

    tensors: Mapping[str, Tensor]
    new: tuple[str, ...] = ()
    outputs: int | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """How weights fit the classes of the data.

    tensors: those to load, the head's in the order of the data. new: the tensors that stay newly initialised. reason:
    why some of the head do; "" if all of it is kept. notes: what was done, in words.
    """

    tensors: Mapping[str, Tensor]
    new: tuple[str, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = field(default=())

    def load(self, net: nn.Module) -> None:
        """Load the tensors into the network that they were read for."""
        net.load_state_dict({**net.state_dict(), **self.tensors})


def fit_head(given: Given, head: Head) -> Fitted:
    """Put the head of weights into the order of the data's classes. It is not kept if it is for other classes.

    Raises:
        DataError: the classes or their order differ, and which tensors have a part for each class is not known.
    """
    if set(given.new) & head.dims.keys() or (given.new and not head.dims):
        reason = f"the weights have {given.outputs} classes, the data {len(head.classes)}"
        return _new(given, head, reason if given.outputs is not None else "the weights have none")
    fitted = _in_order(given, head)
    if not given.new or fitted.reason:
        return fitted
    reason = f"the weights lack {', '.join(given.new)}"
    return replace(fitted, new=given.new, reason=reason, notes=(*fitted.notes, f"newly initialised: {reason}"))


def _in_order(given: Given, head: Head) -> Fitted:
    """Put a head with an output for each class into the order of the data's classes."""
    if not given.classes or placeholders(given.classes, head.classes):
        return _kept(given, head, "as the data order them: the weights name no classes")
    rows = matched(head.classes, given.classes)
    if rows == list(range(len(head.classes))):
        return _kept(given, head, "as the weights name them")
    if not head.dims:
        message = f"the weights are for other classes, or another order: {_listed(_outputs(given.classes))}"
        hint = "build(classes) of your network must take other numbers, too, so that the head's tensors can be found"
        raise DataError(message, hint=hint)
    if rows is None:
        reason = f"the weights are for other classes: {_unlike(given.classes, head.classes)}"
        if all(name.isdecimal() for name in head.classes):
            reason += "; the data number their classes, and data.classes can name them"
        return _new(given, head, reason)
    parts = {name: tensor for name, tensor in given.tensors.items() if name in head.dims}
    moved = {name: tensor.index_select(head.dims[name], torch.tensor(rows)) for name, tensor in parts.items()}
    outputs = [f"output {i} is '{shown(name)}' (was {rows[i]})" for i, name in enumerate(head.classes)]
    note = f"the head is kept, and put into the order of the data: {_listed(outputs)}"
    return Fitted({**given.tensors, **moved}, notes=(*given.notes, note))


def _kept(given: Given, head: Head, order: str) -> Fitted:
    """The weights with their head as it is."""
    return Fitted(given.tensors, notes=(*given.notes, f"the head is kept: {_listed(_outputs(head.classes))}, {order}"))


def _new(given: Given, head: Head, reason: str) -> Fitted:
    """The weights without their head."""
    kept = {name: tensor for name, tensor in given.tensors.items() if name not in head.dims}
    new = tuple(sorted({*given.new, *head.dims}))
    note = f"the head is newly initialised ({', '.join(new)} not loaded): {reason}"
    return Fitted(kept, new, reason, (*given.notes, note))


def _outputs(classes: Sequence[str]) -> list[str]:
    return [f"output {i} is '{shown(name)}'" for i, name in enumerate(classes)]


def _listed(outputs: Sequence[str]) -> str:
    """The first two and the last of many outputs."""
    return ", ".join(outputs if len(outputs) <= 4 else [*outputs[:2], f"... {outputs[-1]}"])


def _unlike(ours: Sequence[str], theirs: Sequence[str]) -> str:
    names = {_plain(name) for name in theirs}
    strange = [f"'{shown(name)}'" for name in ours if _plain(name) not in names]
    more = f" and {len(strange) - 3} more" if strange[3:] else ""
    return f"{', '.join(strange[:3])}{more} of {len(ours)} are not in the data" if strange else "some are named twice"


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _folded(name: str) -> str:
    return _plain(name).casefold()


def _spaced(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", _folded(name))


def matched(wanted: Sequence[str], named: Sequence[str]) -> list[int] | None:
    """Return for each wanted class its place among the named ones; None if they are not the same classes. Names are
    equal after strip and NFC; else, where that is unique, without regard to case; else with `_` and `-` as spaces."""
    rules: tuple[Callable[[str], str], ...] = (_plain, _folded, _spaced)
    for rule in rules:
        places = {rule(name): i for i, name in enumerate(named)}
        keys = [rule(name) for name in wanted]
        if len(places) == len(named) == len(set(keys)) and places.keys() == set(keys):
            return [places[key] for key in keys]
    return None


def named_classes(content: Content, outputs: int, classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs that a weight file gives: in its metadata, or beside its tensors. () if there are
    none, or only placeholders such as LABEL_0.

    Args:
        outputs: their number. classes: those of the data; numbers as names are placeholders unless these are numbers.
    Raises:
        DataError: the file names its outputs in two ways; or it is ours, and they cannot be read.
    """
    if own := content.metadata.get(OWN):
        found = {_of_manifest(own)}
    else:
        trees = [content.tree, {name: _json(text) for name, text in content.metadata.items()}]
        found = {names for tree in trees for names in _names_in(tree, 0)}
    known = sorted(names for names in found if len(names) == outputs and not placeholders(names, classes))
    if len(known) > 1:
        listed = "; ".join(_listed(_outputs(names)) for names in known[:2])
        raise DataError(
            f"the file names its classes in {len(known)} ways: {listed}", hint="keep one of them in the file"
        )
    return known[0] if known else ()


def by_output(value: Any) -> tuple[str, ...]:
    """Return names in the order of outputs from a list of names or a map of numbers to names; () if it is neither."""
    if isinstance(value, list | tuple):
        return tuple(value) if value and all(isinstance(name, str) for name in value) else ()
    if not isinstance(value, Mapping):
        return ()
    try:
        rows = sorted((int(number), name) for number, name in value.items())
    except (TypeError, ValueError):
        return ()
    whole = [number for number, _ in rows] == list(range(len(rows)))
    return tuple(name for _, name in rows) if whole and all(isinstance(name, str) for _, name in rows) else ()


def _names_in(tree: Any, depth: int) -> Iterator[tuple[str, ...]]:
    """Yield what a tree of plain values says of the names of outputs."""
    if not isinstance(tree, Mapping) or depth > DEEPEST:
        return
    for key, value in tree.items():
        word = str(key).lower()
        names = by_output(value) if word in BY_OUTPUT else ()
        if not names and word in BY_NAME and isinstance(value, Mapping) and all(isinstance(n, str) for n in value):
            names = by_output({number: name for name, number in value.items() if isinstance(number, int)})
        if names:
            yield names
        elif isinstance(value, Mapping):
            yield from _names_in(value, depth + 1)


def placeholders(names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether names only count: LABEL_0, LABEL_1, ...; or 0, 1, ... where the data have words."""
    if all(re.fullmatch(rf"(LABEL|label|class)_{i}", name) for i, name in enumerate(names)):
        return matched(classes, names) is None
    numbers = [str(i) for i in range(len(names))]
    return list(names) == numbers and not all(name.strip().isdecimal() for name in classes)


def _of_manifest(text: str) -> tuple[str, ...]:
    """Return the classes of the data that a network of ours was trained on, from the manifest in its file. Only the
    parts that name them are read, so that files of earlier versions keep their order.

    Raises:
        DataError: they cannot be read.
    """
    try:
        manifest = json.loads(text)
        lock = Lock.model_validate(manifest["lock"], strict=False)
        works = [upstream["work"] for upstream in manifest["closure"].values()]
        (data,) = [work["data"] for work in works if work["kind"] == "prepare"]
        if lock.data:
            return next(iter(lock.data.values())).classes
        return class_names(Simulated.model_validate(data, strict=False))
    except (ValueError, KeyError, TypeError, AttributeError):
        hint = "use a file of this version, or weights that name their classes (id2label)"
        raise DataError(
            "another version of stagedkd made it, and the order of its classes cannot be read", hint=hint
        ) from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
