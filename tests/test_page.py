"""The pages of reports in headless Chromium: nothing is wider than its box, and axe-core finds nothing wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagedkd.report.collect import collect
from stagedkd.report.grid import collect_grid
from tests.browser import Page, axe_source, opened, served, violations
from tests.pages import experiments, grids, make_grid

WIDTHS = (390, 700, 1024, 1400, 1920)
NAMES = (
    "everything",
    "many long classes",
    "one class",
    "no truth, no control",
    "a headless teacher alone",
    "settings",
    "no baseline",
)
WIDER = """() => {
  const found = [], name = (e) => e.tagName + '.' + (e.getAttribute('class') ?? '') + ' ' + e.textContent.slice(0, 60);
  const hidden = (e) => e.closest('thead') && getComputedStyle(e.closest('thead')).clipPath !== 'none';
  for (const e of document.body.querySelectorAll('*')) {
    if (e.closest('svg') || hidden(e)) continue;
    const box = e.getBoundingClientRect();
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1) found.push(`scrolls: ${name(e)}`);
    if (box.right > innerWidth + 0.5 || box.left < -0.5) found.push(`leaves the window: ${name(e)}`);
    const around = e.parentElement.getBoundingClientRect();
    if (box.width > around.width + 0.5) found.push(`wider than what it is in: ${name(e)}`);
  }
  for (const e of document.querySelectorAll('svg text')) {
    const box = e.getBoundingClientRect(), around = e.closest('svg').getBoundingClientRect();
    if (box.right > around.right + 2 || box.left < around.left - 2) found.push(`cut off: ${e.textContent}`);
  }
  return found;
}"""
OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true })"


def file_of(name: str) -> str:
    return re.sub(r"\W+", "-", name) + ".html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pages with awkward content."""
    plans, store = make_grid(tmp_path_factory.mktemp("grid"))
    results = collect(plans.cells["recipe=staged,train.lr=0.01,seed=0"], store)
    made = {**experiments(results), **grids(collect_grid(plans, store))}
    assert tuple(made) == NAMES
    folder = tmp_path_factory.mktemp("pages")
    for name, text in made.items():
        (folder / file_of(name)).write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def tab(pages: Path) -> Iterator[tuple[str, Page]]:
    """A browser for all tests of this file, and the address of the pages."""
    with served(pages) as address, opened(address) as tab:
        yield address, tab


@pytest.fixture
def page(tab: tuple[str, Page], request: pytest.FixtureRequest) -> Page:
    """A page in a browser, with all of its parts unfolded."""
    address, page = tab
    page.emulate_media(media="screen", color_scheme="light", reduced_motion="no-preference")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(address + file_of(request.param))
    page.evaluate(OPEN)
    return page


@pytest.mark.slow
@pytest.mark.parametrize("page", NAMES, indirect=True)
def test_nothing_is_wider_than_its_box(page: Page) -> None:
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(WIDER) == [], width


@pytest.mark.slow
@pytest.mark.parametrize("page", NAMES, indirect=True)
def test_axe_finds_nothing_wrong(page: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    axe = axe_source(tmp_path_factory.getbasetemp())
    for scheme, width in (("light", 1400), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page, axe) == [], (scheme, width)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["everything"], indirect=True)
def test_axe_would_find_a_fault(page: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    page.add_style_tag(content=".dim { color: #bbb !important }")
    page.evaluate("document.querySelector('.film').removeAttribute('aria-label')")
    found = violations(page, axe_source(tmp_path_factory.getbasetemp()))
    assert {line.partition(":")[0] for line in found} >= {"color-contrast", "role-img-alt"}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["everything"], indirect=True)
def test_text_of_plots_is_as_large_as_a_phone_needs(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    scale = "e.closest('svg').getBoundingClientRect().width / e.closest('svg').viewBox.baseVal.width"
    size = f"(e) => parseFloat(getComputedStyle(e).fontSize) * {scale}"
    sizes = page.evaluate(f"[...document.querySelectorAll('svg text')].map({size})")
    assert len(sizes) > 100 and min(sizes) >= 9.5  # pixels of the screen


@pytest.mark.slow
@pytest.mark.parametrize("page", ["everything"], indirect=True)
def test_wrong_clips_move_and_can_be_held(page: Page) -> None:
    state = "getComputedStyle(document.querySelector('.film')).animationPlayState"
    name = "getComputedStyle(document.querySelector('.film')).animationName"
    assert page.evaluate(state) == "running" and page.evaluate(name) == "film"
    page.focus("#stop")
    page.keyboard.press("Space")
    assert page.evaluate(state) == "paused"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(name) == "none" and page.is_visible("#play") and not page.is_visible("#stop")
    page.check("#play")
    assert page.evaluate(name) == "film"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["everything"], indirect=True)
def test_the_keyboard_reaches_the_sections_and_unfolds_what_is_folded(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false })")
    page.keyboard.press("Tab")
    reached = [page.evaluate("document.activeElement.textContent")]
    while page.evaluate("document.activeElement.tagName") == "A" and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert "Wrong clips" in reached and "How it was made" in reached
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.parentElement.open")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["everything"], indirect=True)
def test_print_is_light_and_hides_nothing(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = false })")
    page.set_viewport_size({"width": 700, "height": 900})  # pixels of A4 between its margins
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('details pre').getBoundingClientRect().height") > 100
    assert not page.is_visible("nav") and not page.is_visible(".motion")
    assert page.evaluate(WIDER) == []
