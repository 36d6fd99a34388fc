"""From a file to a validated `Spec`: read, lay `--set` over it, validate once, place every error."""

from __future__ import annotations

import difflib
import hashlib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stagedkd.errors import Place, Problem, SpecError, UsageError
from stagedkd.spec.rules import check_rules
from stagedkd.spec.schema import Spec
from stagedkd.spec.yaml import Document, Path_, Value, parse_yaml, read_yaml

ROOT_MARKS = ("params.yaml", "stagedkd.lock", "dvc.yaml", ".git")


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read and validate a spec.

    Args:
        path: the YAML file.
        overrides: `a.b=c` strings, scalars typed by the rules of the file.
    Raises:
        SpecError: with every problem found, each with its place.
        UsageError: no such file, or an override that is not of the form a.b=c.
    """
    path = Path(path)
    document = read_yaml(path)
    for override in overrides:
        document = _override(document, override)
    assert isinstance(document.value, dict)
    tree = dict(document.value)
    tree.setdefault("name", path.stem)
    problems = _read_own_code(tree, document, specs_root(path))
    try:
        spec = Spec.model_validate(_freeze(tree))
    except ValidationError as error:
        problems += [_problem(detail, document) for detail in error.errors(include_url=False)]
        raise SpecError(_in_file_order(_unique(problems))) from None
    problems += [Problem(fault, document.place(at, key=True), hint) for fault, at, hint in check_rules(spec)]
    if problems:
        raise SpecError(_in_file_order(problems))
    return spec


def specs_root(path: Path) -> Path:
    """The project's folder: the nearest one above the spec that has params.yaml, a lock, dvc.yaml or .git."""
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if any((candidate / mark).exists() for mark in ROOT_MARKS):
            return candidate
    return folder


def _override(document: Document, override: str) -> Document:
    name, sign, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not sign or not all(keys):
        raise UsageError(f"--set {override!r} is not of the form a.b=c", hint="for example --set train.lr=1e-3")
    source = f"--set {override}"
    given = parse_yaml(f"value: {text}", source)
    assert isinstance(given.value, dict) and isinstance(document.value, dict)
    place = Place("--set", 1, 1, len(name), override)
    tree = _with(document.value, keys, given.value["value"])
    values = {at: p for at, p in document.values.items() if at[: len(keys)] != keys} | {keys: place}
    return Document(tree, document.keys | {keys: place}, values)


def _with(tree: dict[str, Value], keys: tuple[str, ...], value: Value) -> dict[str, Value]:
    head, rest = keys[0], keys[1:]
    if not rest:
        return {**tree, head: value}
    inner = tree.get(head)
    if isinstance(inner, list):
        raise UsageError(f"--set cannot reach into the list '{head}'", hint=f"set the whole list: {head}=[...]")
    below: Value = _with(inner if isinstance(inner, dict) else {}, rest, value)
    return {**tree, head: below}


def _freeze(value: Value) -> Any:
    """Lists to tuples: strict frozen models take no lists."""
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _networks(tree: dict[str, Value]) -> Iterable[tuple[Path_, dict[str, Value]]]:
    cascade = tree.get("cascade")
    listed = [(("cascade", i), net) for i, net in enumerate(cascade)] if isinstance(cascade, list) else []
    for at, network in [(("teacher",), tree.get("teacher")), *listed, (("student",), tree.get("student"))]:
        if isinstance(network, dict):
            yield at, network


def _read_own_code(tree: dict[str, Value], document: Document, root: Path) -> list[Problem]:
    """Put the digest of each `arch: file` network into the tree; the file is read, never run."""
    problems: list[Problem] = []
    for at, network in _networks(tree):
        if "digest" in network:
            problems.append(Problem("'digest' is not yours to set", document.place((*at, "digest"), key=True)))
        name = network.get("path")
        if network.get("arch") != "file" or not isinstance(name, str):
            continue
        path, place = (root / name).resolve(), document.place((*at, "path"))
        if not path.is_relative_to(root.resolve()):
            problems.append(Problem(f"{name} lies outside the specs' root", place, "move it into the project"))
        elif not path.is_file():
            problems.append(Problem(f"no file {name} below the specs' root", place))
        else:
            network["digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return problems


# ---------------------------------------------------------------- from pydantic's errors to places


def _problem(detail: ErrorDetails, document: Document) -> Problem:
    at = _path_in_file(detail["loc"], document)
    kind, context = detail["type"], detail.get("ctx", {})
    name = ".".join(str(part) for part in at) or "the spec"
    if kind == "extra_forbidden":
        return Problem(f"unknown key '{name}'", document.place(at, key=True), _did_you_mean(detail["loc"], at))
    if kind == "missing":
        return Problem(f"'{name}' is missing", document.place(at[:-1], key=True), f"add {at[-1]}: ...")
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "kind")).strip("'")
        known = _known_tags(detail)
        return Problem(f"'{name}' needs '{tag}'", document.place(at, key=True), f"one of {known}" if known else "")
    if kind == "union_tag_invalid":
        tag, got = str(context["discriminator"]).strip("'"), str(context["tag"])
        allowed = str(context["expected_tags"]).replace("'", "").split(", ")
        near = difflib.get_close_matches(got, allowed, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(allowed)}"
        return Problem(f"'{name}.{tag}' cannot be {got!r}", document.place((*at, tag)), hint)
    if kind == "value_error":
        return Problem(f"'{name}': {context['error']}", document.place(at))
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    message = message.replace("input should be", "must be").replace("tuple", "list").replace("dictionary", "map")
    got = detail["input"]
    shown = f", not {got!r}" if isinstance(got, (str, int, float, bool)) or got is None else ""
    return Problem(f"'{name}' {message}{shown}", document.place(at))


def _path_in_file(location: tuple[str | int, ...], document: Document) -> Path_:
    """pydantic's location without the names of union arms, which stand in no file."""
    path: list[str | int] = []
    node: Value = document.value
    for i, part in enumerate(location):
        below = _children(node)
        if part in below:
            node = below[part]
        elif i < len(location) - 1 or _is_arm(part, location[:i]) or not isinstance(node, dict):
            continue  # the name of a union's arm; a last part that is none is a missing key
        path.append(part)
    return tuple(path)


def _children(node: Value) -> dict[str | int, Value]:
    if isinstance(node, dict):
        return {key: value for key, value in node.items()}  # noqa: C416 - a dict of another key type
    return dict(enumerate(node)) if isinstance(node, list) else {}


def _is_arm(part: str | int, parents: tuple[str | int, ...]) -> bool:
    found = _models_at(parents)
    return not any(part in model.model_fields for model in found)


def _models_at(location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """The models that can stand at a pydantic location (with or without arm names in it)."""
    annotations: list[Any] = [Spec]
    for part in location:
        following: list[Any] = []
        for model in _flatten(annotations):
            if isinstance(model, type) and issubclass(model, BaseModel):
                if str(part) in model.model_fields:
                    following.append(model.model_fields[str(part)].annotation)
                elif any(part in _tags(field.annotation) for field in model.model_fields.values()):
                    following.append(model)
            else:  # a map's or a list's items
                following += [arg for arg in typing.get_args(model) if arg is not Ellipsis]
        annotations = following or annotations
    return [m for m in _flatten(annotations) if isinstance(m, type) and issubclass(m, BaseModel)]


def _tags(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _flatten(annotations: Iterable[Any]) -> Iterable[Any]:
    """Unions and Annotated taken apart; maps, lists and models as they are."""
    for annotation in annotations:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            yield from _flatten([typing.get_args(annotation)[0]])
        elif origin in (typing.Union, types.UnionType):
            yield from _flatten(typing.get_args(annotation))
        elif annotation is not type(None):
            yield annotation


def _did_you_mean(location: tuple[str | int, ...], at: Path_) -> str:
    models = _models_at(location[:-1])
    fields = sorted({name for model in models for name in model.model_fields} - {"digest"})
    near = difflib.get_close_matches(str(at[-1]).lower(), fields, 1)
    return f"did you mean '{near[0]}'?" if near else (f"known here: {', '.join(fields)}" if fields else "")


def _known_tags(detail: ErrorDetails) -> str:
    tag = str(detail.get("ctx", {}).get("discriminator", "")).strip("'")
    found = [
        t for m in _models_at(detail["loc"]) if tag in m.model_fields for t in _tags(m.model_fields[tag].annotation)
    ]
    return ", ".join(dict.fromkeys(map(str, found)))


def _unique(problems: list[Problem]) -> list[Problem]:
    """A union's arms report the same place each: keep the first of each message and place."""
    return list({(p.message, p.place): p for p in problems}.values())


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda p: (p.place.line, p.place.column) if p.place else (0, 0))
