"""The house: what the formatter and the linter cannot hold."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

from tests.conftest import REPO

LONGEST_FUNCTION, LONGEST_FILE = 50, 450
README = (REPO / "README.md").read_text("utf-8")
CODE = sorted((REPO / "stagedkd").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]


def test_no_function_and_no_file_is_too_long_to_read() -> None:
    long = [
        f"{path.relative_to(REPO)}:{node.lineno} {node.name}"
        for path in CODE
        for node in functions(path)
        if (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long
    assert not [path.name for path in CODE if len(path.read_text("utf-8").splitlines()) > LONGEST_FILE]


def test_from_the_command_to_the_training_step_are_at_most_four_hops() -> None:
    """README names the files; each one calls a function of the next, and the last one has the training step."""
    (chain,) = re.findall(r"^From the command to the training step: (.*?)\.$", README, re.MULTILINE)
    files = [REPO / "stagedkd" / name for name in re.findall(r"`([\w/]+\.py)`", chain)]
    assert 2 <= len(files) <= 5 and files[0].parent.name == "cli"
    imports = {path: path.read_text("utf-8") for path in files}
    for caller, called in pairwise(files):
        module = called.relative_to(REPO).with_suffix("").as_posix().replace("/", ".")
        assert f"from {module} import" in imports[caller], (caller.name, module)
    assert "def fit(" in imports[files[-1]] and "def train_step(" in imports[files[-1]]


def test_the_formatter_is_never_switched_off() -> None:
    every = [*CODE, *(REPO / "tests").glob("*.py"), *(REPO / "benchmarks").glob("*.py")]
    marks = ("# fmt:" + " skip", "# fmt:" + " off")
    assert not [path.name for path in every if any(mark in path.read_text("utf-8") for mark in marks)]
