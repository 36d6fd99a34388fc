"""The pages of docs/: links lead somewhere, the navigation has every page, specs compile, generated pages are current."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagedkd.cli import api, reference
from stagedkd.cli.docs import LINK
from stagedkd.plan.compile import compile_experiment
from stagedkd.plan.runtime import load_runtime
from stagedkd.spec.load import load_experiment
from tests.browser import axe_source, opened, served, violations
from tests.conftest import REPO, Command

DOCS = REPO / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TUTORIAL = (DOCS / "tutorial.md").read_text("utf-8")
HOW_TO = [*sorted((DOCS / "how-to").glob("*.md")), *sorted((DOCS / "coming-from").glob("*.md"))]


def outside_code(page: Path) -> str:
    """The text of a page without its blocks and spans of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {title.strip().replace(" ", "-") for title in plain}


def dead_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield f"{page.relative_to(REPO)}: {target}"


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    pages = [*PAGES, *REPO.glob("*.md")]
    assert len(pages) > 60
    assert not [link for page in pages for link in dead_links(page)]


def test_the_navigation_has_every_page_once() -> None:
    listed = [name for _, name, heading in LINK.findall((DOCS / "index.md").read_text("utf-8")) if not heading]
    there = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
    below = {name for name in there if name.startswith("decisions/0")}  # their own page lists the folder
    assert sorted(listed) == sorted(there - below - {"index"})


def test_generated_pages_are_those_of_the_code() -> None:
    for name, text in (("commands.md", reference.reference()), ("python.md", api.reference())):
        assert (DOCS / name).read_text("utf-8") == text, f"docs/{name} is old: run make docs"


def test_no_page_loads_anything_from_elsewhere() -> None:
    """The site is read without a network: no page has a picture, a script or a style of another place."""
    for page in [*PAGES, *(DOCS / "_static").iterdir()]:
        assert not re.search(r"(!\[[^]]*\]\(|src=[\"']|url\([\"']?)https?:", page.read_text("utf-8")), page


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    """A project after the tutorial: the spec that `stagedkd init` wrote, and the shipped quickstart."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "params.yaml").write_text("runtime: {}\n", "utf-8")
    (spec,) = re.findall(r"^(# my_videos: .*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    (tmp_path / "specs" / "my_videos.yaml").write_text(spec, "utf-8")
    for name in ("quickstart.yaml", "quickstart.tuned.yaml"):
        (tmp_path / "specs" / name).write_bytes((REPO / "specs" / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_specs_of_a_how_to_page_compile(followed: Path, page: Path) -> None:
    blocks = re.findall(r"^```(?:yaml|python)\n# (\S+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for name, text in blocks:
        (followed / name).parent.mkdir(parents=True, exist_ok=True)
        (followed / name).write_text(text, "utf-8")
    (followed / "soft.csv").write_text("path,down,left,right,up\n", "utf-8")  # the outputs of a teacher from elsewhere
    assert load_runtime(followed).folder("store").name == "store"  # params.yaml, where the page has one
    specs = [followed / name for name, _ in blocks if name.startswith("specs/")]
    assert specs
    for spec in specs:
        assert compile_experiment(load_experiment(spec)).unique, spec


def test_every_yaml_block_of_a_how_to_page_says_its_file() -> None:
    for page in HOW_TO:
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            assert re.match(r"# (specs/[\w/]+|params)\.yaml\n", block), (page.name, block)


def test_docs_lists_and_prints_the_pages(stagedkd: Command) -> None:
    listed = stagedkd("docs")
    assert listed.returncode == 0 and "tutorial " in listed.stdout and "How to:" in listed.stdout
    assert stagedkd("docs", "own-teacher").stdout == (DOCS / "how-to" / "own-teacher.md").read_text("utf-8")
    wrong = stagedkd("docs", "glosary")
    assert wrong.returncode == 2 and "did you mean 'glossary'?" in wrong.stderr


def test_pages_that_messages_name_are_there() -> None:
    """Whoever has a wheel reads them by `stagedkd docs PAGE`: no message names a file of the repository."""
    code = {path: path.read_text("utf-8") for path in (REPO / "stagedkd").rglob("*.py")}
    named = {name for text in code.values() for name in re.findall(r"stagedkd docs ([a-z-]+)", text)}
    assert named and not [name for name in named if not any(page.stem == name for page in PAGES)]
    assert not [path for path, text in code.items() if re.search(r"hint=.*docs/\w+\.md", text)]


def templates() -> list[str]:
    """The texts in the code of the package; `…` stands for the values of an f-string."""
    texts: list[str] = []
    for path in (REPO / "stagedkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return texts


def test_the_errors_that_the_page_explains_are_those_of_the_code() -> None:
    page = (DOCS / "errors.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    texts = templates()
    assert len(messages) > 40
    assert not [message for message in messages if not any(message in text for text in texts)]


@pytest.mark.slow
def test_axe_finds_nothing_wrong_with_the_site(tmp_path: Path) -> None:
    """As built: some pages with wide tables and blocks, in light and wide, and in dark on a phone, where nothing is
    wider than the page."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(tmp_path / "site")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    axe = axe_source(tmp_path)
    with served(tmp_path / "site") as address, opened(address) as page:
        for name in ("index", "tutorial", "commands", "errors", "results"):
            for scheme, width in (("light", 1400), ("dark", 390)):
                page.goto(f"{address}{name}.html")
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                assert violations(page, axe) == [], (name, scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
