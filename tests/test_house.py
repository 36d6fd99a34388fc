"""The house: what the formatter and the linter cannot hold."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

from tests.conftest import REPO

LONGEST_FUNCTION, LONGEST_FILE = 50, 450
LONGEST_LINE, LONGEST_ENTRY = 120, 3
CONTRIBUTING = (REPO / "docs" / "contributing.md").read_text("utf-8")
GLOSSARY = (REPO / "docs" / "glossary.md").read_text("utf-8")
GENERATED = {REPO / "docs" / f"{name}.md" for name in ("spec", "commands", "python")}
PAGES = [REPO / "README.md", REPO / "CHANGELOG.md", *sorted({*(REPO / "docs").rglob("*.md")} - GENERATED)]
WORDS = {
    *("hop", "substage", "block", "phase", "guide", "teacher", "assistant", "student", "control", "adapter", "view"),
    *("stage", "input", "role", "cell", "grid", "recipe", "key", "lock", "lease", "store", "artifact", "manifest"),
    *("kept outputs", "share", "sink", "rank", "worker", "launcher", "run", "cut", "pair", "clip", "address", "jobs"),
    *("ready-queue", "logger", "group", "fold"),
    *("rehearsal", "record", "student card", "export", "quantiser"),
}
CODE = sorted((REPO / "stagedkd").rglob("*.py"))


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]


def prose(text: str) -> list[str]:
    """The lines of a page outside code fences, tables and link definitions."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not (fenced or fence or line.lstrip().startswith("|") or re.match(r"\s*\[[^]]+\]: ", line)):
            lines.append(line)
    return lines


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
    """The page names the files; each one calls a function of the next, and the last one has the training step."""
    form = r"^From the command to the training step: (.*?)\.$"
    (chain,) = re.findall(form, CONTRIBUTING, re.MULTILINE | re.DOTALL)
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


def test_no_line_of_prose_is_too_long_to_read() -> None:
    """Where a URL makes a line long, the URL does not count."""
    long = [
        f"{page.relative_to(REPO)}: {line}"
        for page in PAGES
        for line in prose(page.read_text("utf-8"))
        if len(re.sub(r"https?://\S+", "", line)) > LONGEST_LINE
    ]
    assert len(PAGES) > 20 and not long


def test_the_glossary_defines_each_word_once_and_says_where_it_lives() -> None:
    headings = re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE)
    assert sorted(headings) == sorted(WORDS)
    for entry in GLOSSARY.split("\n### ")[1:]:
        word, text = entry.split("\n\n", 1)
        text = text.partition("\n#")[0].strip()
        assert len(text.splitlines()) <= LONGEST_ENTRY, word
        assert re.search(r"Files?:\s`", text), word


def test_the_files_that_contributing_and_glossary_name_are_there() -> None:
    for page, form in ((CONTRIBUTING, r"`([\w/]+/\w+\.py)`"), (GLOSSARY, r"`([\w/]+/(?:\w+\.py)?)`")):
        named = re.findall(form, page)
        assert len(named) > 10
        assert not [name for name in named if not (REPO / "stagedkd" / name).exists()]


def test_contributing_says_where_to_find_what() -> None:
    """Every function or class that the table names is defined in a file that its row names."""
    (section,) = re.findall(r"^## Where to find what$(.*?)^## ", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    rows = [row for row in section.splitlines() if "`" in row and row.startswith("|")]
    assert len(rows) > 5
    for row in rows:
        text = "".join((REPO / "stagedkd" / name).read_text("utf-8") for name in re.findall(r"`([\w/]+\.py)`", row))
        names = re.findall(r"`(?:\w+\.)?(\w+)`", row)
        assert not [name for name in names if not re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE)], row
