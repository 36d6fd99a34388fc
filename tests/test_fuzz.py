"""Mutated specs: whatever is written, the loader gives a spec or errors with places; never a traceback, never a hang."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagedkd import compile_plan
from stagedkd.errors import SpecError, UsageError
from stagedkd.spec import yaml
from stagedkd.spec.explain import explain
from stagedkd.spec.load import load_experiment
from stagedkd.spec.yaml import parse_yaml
from tests.broken import BROKEN, INHERITED
from tests.conftest import REPO, TINY

SEEDS = [
    TINY,
    # without its section `tune`, whose choices are a file beside the spec
    (REPO / "specs" / "quickstart.yaml").read_text("utf-8").partition("\ntune:")[0],
    *((REPO / "specs" / f"{name}.yaml").read_text("utf-8") for name in ("weizmann", "ucf101")),
    "extends: base.yaml\nrecipe: kd\nstudent: {epochs: 4}\ntrain: {$replace: {lr: 1e-3}}\ncascade: {$delete: true}\n",
    "extends: [base.yaml, other.yaml]\ngrid:\n  seeds: 2\n  axes: {train.lr: [1e-3, 1e-2], student: {a: {width: 8}, b: {}}}\n"
    "  exclude: [{student: b, seed: 1}]\n  include: [{train.lr: 1.0, student: a}]\n",
]
WORDS = [
    "null",
    "true",
    "no",
    "-1",
    "0",
    "1",
    "3",
    "1e-3",
    "1e400",
    ".nan",
    ".inf",
    "-.inf",
    "''",
    "'x'",
    "[]",
    "{}",
    "[1, [2]]",
    "{a: {b: 1}}",
    "auto",
    "all",
    "one_by_one",
    "resnet3d",
    "r3d_18",
    "mvit_v2_s",
    "tsm",
    "hf",
    "file",
    "shapes",
    "folder",
    "csv",
    "ucf101",
    "kind",
    "arch",
    "extends",
    "recipe",
    "grid",
    "axes",
    "seeds",
    "include",
    "exclude",
    "$delete",
    "$replace",
    "$x",
    "base.yaml",
    "../x",
    "/",
    ".",
    "digest",
    "path",
    "args",
    "weights",
    "substages",
    "losses",
    "phases",
    "distill",
    "epochs",
    "ce",
    "kd",
    "pseudo",
    "refine",
    "noise_model",
    "teacher",
    "name",
    "&a",
    "*a",
    "!!int",
    "---",
    "? ",
    "|",
    ">",
    "%",
    "@",
    "`",
    "\t",
    "\x00",
    "\u2028",
    "\ufeff",
    "\x85",
    "\U0001f600",
    "a: b: c",
    "<<",
    "é",
    "99999999999999999999",
    "0x1F",
    "0o17",
    "1_000",
    "9" * 5000,
    "[" * 70,
    "stem",
    "layer1",
    "layer9",
    "grow",
    "joint",
    "width",
    "2.5",
]
SIGNS = list("{}[]:,-#'\"\n \t&*!|>%@`~?.$\\0aZ\r")


def mutate(text: str, rng: random.Random) -> str:
    """One to four small changes: lines, tokens and characters lost, doubled, swapped or replaced."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        lines = text.split("\n")
        kind, i = rng.randrange(8), rng.randrange(len(lines))
        at = rng.randrange(len(text) + 1)
        if kind == 0:
            lines.insert(rng.randrange(len(lines) + 1), lines[i])
        elif kind == 1:
            del lines[i]
        elif kind == 2:
            lines[i] = rng.choice(["  ", "    ", " ", ""]) + lines[i].lstrip()
        elif kind in (3, 4):
            parts = re.split(r"([\s,:{}\[\]]+)", text)
            parts[rng.randrange(len(parts))] = rng.choice(WORDS)
            lines = "".join(parts).split("\n")
        elif kind == 5:
            lines = (text[:at] + rng.choice(SIGNS) + text[at:]).split("\n")
        elif kind == 6:
            lines = (text[:at] + text[at + rng.randint(1, 12) :]).split("\n")
        else:
            lines.append(rng.choice(["", "  "]) + rng.choice(WORDS) + ": " + rng.choice(WORDS))
        text = "\n".join(lines)
    return text


def outcome(folder: Path, text: str, sets: tuple[str, ...] = ()) -> str:
    """Load a text; anything but a spec or a placed error fails, and so does a hang: what takes 0.5 s takes 30."""
    path = folder / "fuzzed.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    started = time.process_time()
    try:
        found = load_experiment(path, sets)
        for cell in found.cells[:3]:
            compile_plan(cell.spec)
            assert explain(cell, found.trees[cell.name])
        result = "spec"
    except SpecError as error:
        assert error.problems and error.render()
        for problem in error.problems:
            assert problem.place is not None and problem.place.line >= 1 and problem.place.column >= 1, (text, problem)
            assert problem.message and "Traceback" not in problem.message
        result = "error"
    except UsageError as error:
        assert sets and error.message, text
        result = "usage"
    assert time.process_time() - started < 30, text[:200]
    return result


def prepared(folder: Path) -> Path:
    (folder / "params.yaml").write_text("runtime: {}\n", "utf-8")
    (folder / "base.yaml").write_text(TINY, "utf-8")
    (folder / "other.yaml").write_text("train: {lr: 1e-3}\n", "utf-8")
    return folder


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    broken = [text.replace("tiny", "base") for text, *_ in INHERITED] + [
        TINY.replace(old, new, 1) for old, new, *_ in BROKEN
    ]
    found = {"spec": 0, "error": 0, "usage": 0}
    for i in range(count):
        sets = (f"{'.'.join(rng.choices(WORDS, k=rng.randint(1, 3)))}={rng.choice(WORDS)}",) if i % 6 == 0 else ()
        found[outcome(folder, mutate(rng.choice(SEEDS if rng.random() < 0.8 else broken), rng), sets)] += 1
    return found


def test_mutated_specs_give_a_spec_or_placed_errors(tmp_path: Path) -> None:
    found = fuzz(prepared(tmp_path), 1500, 1)
    assert found["spec"] > 50 and found["error"] > 500 and found["usage"] > 10, found


@pytest.mark.slow
def test_twenty_thousand_mutated_specs(tmp_path: Path) -> None:
    found = fuzz(prepared(tmp_path), 20_000, 2)
    assert found["spec"] > 1000 and found["error"] > 8000, found


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.text("{}[]:,-#'\"\n ab1$&*!|>%@?", max_size=40))
def test_any_text_at_all(tmp_path: Path, text: str) -> None:
    assert outcome(tmp_path, text.encode("utf-8", "ignore").decode()) == "error"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 50)
    | st.sampled_from(["all", "auto", "x", "resnet3d", "shapes", "kd"])
    | st.floats(-1, 2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "arch", "width", "losses", "kd", "epochs", "a", "$delete", "$replace"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [
            "data",
            "clip",
            "augment",
            "labels",
            "refine",
            "train",
            "teacher",
            "cascade",
            "student",
            "distill",
            "evaluate",
            "control",
            "seed",
            "grid",
            "recipe",
            "extends",
        ]
    ),
    values,
)
def test_any_value_in_any_section(tmp_path: Path, section: str, value: Any) -> None:
    outcome(
        prepared(tmp_path),
        f"extends: base.yaml\n{section}: {json.dumps(value)}\n"
        if section != "extends"
        else f"extends: {json.dumps(value)}\n",
    )


@pytest.mark.parametrize(
    "text",
    [
        "a: [" + "1," * 30_000 + "]",
        "a: " + "x " * 500_000,
        "a: '" + "x" * 1_000_000 + "'",
        "[" * 3000,
        "- " * 50_000,
        "\n" * 1_000_000,
        "a: {" * 60 + "}" * 60,
        "".join(f"k{i}: 1\n" for i in range(9000)),
        "a: &x [1]\nb: " + "[*x, *x]" * 100,
        "#" + "x" * 1_000_000,
    ],
)
def test_large_and_deep_texts_are_refused_in_time(tmp_path: Path, text: str) -> None:
    assert outcome(tmp_path, text) == "error"


@settings(max_examples=100)
@given(st.integers(0, 10**9))
def test_both_of_pyyamls_loaders_read_the_same(seed: int) -> None:
    """The C loader is ten times as fast; where it is missing, the other one must give the same values and places."""
    import yaml as pyyaml

    text, found = mutate(random.Random(seed).choice(SEEDS), random.Random(seed)), []
    before = yaml.LOADER
    try:
        for loader in (pyyaml.SafeLoader, pyyaml.CSafeLoader):
            yaml.LOADER = loader
            try:
                found.append(parse_yaml(text, "x"))
            except SpecError:
                found.append(None)
    finally:
        yaml.LOADER = before
    assert None in found or found[0].plain() == found[1].plain()


@pytest.mark.parametrize(
    "text",
    [
        *SEEDS,
        "a: é {\n",
        "b: {c: 日本, d: [1, 2]}\n",
        "a: |\n  x\n  y\nb: 1\n",
        "'a': 1\r\nb: 2\r\n",
        "a: \U0001f600\nb: 1\n",
    ],
)
def test_both_loaders_give_the_same_places(text: str) -> None:
    import yaml as pyyaml

    before, found = yaml.LOADER, []
    try:
        for loader in (pyyaml.SafeLoader, pyyaml.CSafeLoader):
            yaml.LOADER = loader
            try:
                found.append(parse_yaml(text, "x"))
            except SpecError as error:
                found.append([p.place for p in error.problems])
    finally:
        yaml.LOADER = before
    assert found[0] == found[1]
