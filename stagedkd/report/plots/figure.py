"""What all plots share: sizes, colours, and how a figure becomes text of the page and files for print.

A figure is as wide as a phone, so that its text is as large as that of the page; wider screens show several in a row.
The SVG has real text. Its colours are variables of the page's style, which has a light and a dark set; those of print
are the light set.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, Literal

from stagedkd.errors import printable

WIDTH = 3.6  # inches of a figure
INK, DIM, LINE, MARK = "#1d2431", "#5b6473", "#d4dae2", "#b3261e"
SERIES = ("#0072b2", "#c24e00", "#00805d", "#a8508a", "#7a6200", "#4f5d75")  # also apart for colour-blind readers
MARKERS = ("o", "s", "^", "D", "v", "P")  # and by shape, without colours
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
VARIABLES = {INK: "--ink", DIM: "--dim", LINE: "--line", MARK: "--mark"} | {c: f"--s{i}" for i, c in enumerate(SERIES)}
STYLE: dict[Any, Any] = {
    "axes.edgecolor": DIM,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 8,
    "font.family": "sans-serif",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "stagedkd",  # without a salt the ids of clip paths differ from run to run
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $x
    "xtick.color": DIM,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": DIM,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}
XLINK = "http://www.w3.org/1999/xlink"  # a name, never fetched
FORMATS = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}


@dataclass(frozen=True)
class Plot:
    """A plot: `name` of its files, `title`, `about` (what it shows, for those who do not see it), its `figure`."""

    name: str
    title: str
    about: str
    figure: Any

    @cached_property
    def svg(self) -> str:
        """The plot as an element of a page."""
        return _for_page(self.alone, self)

    @cached_property
    def alone(self) -> str:
        """The plot as an SVG in the colours of print, for notebooks, which have no style of ours."""
        text = _saved(self.figure, "svg", {"Date": None, "Creator": None, "Format": None, "Type": None}).decode("utf-8")
        return text[text.index("<svg") :]

    def files(self) -> dict[str, bytes]:
        """The plot for print, by the names of the files. The same values give the same bytes."""
        return {f"{self.name}.{form}": _saved(self.figure, form, about) for form, about in FORMATS.items()}


@contextmanager
def drawing() -> Generator[None]:
    """Inside, figures have the style of the report. A character that the font of print lacks is no reason to warn."""
    from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(height: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    """Make a figure of `height` inches with axes below each other. Returns the figure and its axes."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, **options)


def short(name: str, longest: int = 16) -> str:
    """Return a name that fits into a plot: one line, its middle left out where it is too long."""
    text = " ".join(printable(name).split())
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[: longest - 1 - half]}…{text[-half:]}"


def legend(axis: Any, count: int) -> None:
    """Put the legend of `count` entries above the axes, where it hides nothing."""
    columns = 3 if count != 4 else 2
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axis.legend(**place, ncols=columns, handlelength=1.6, columnspacing=1.0, handletextpad=0.4)


def whole_ticks(axis: Any) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def log_scale(axis: Any, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    ticks = getattr(axis, f"{which}axis")
    low, high = getattr(axis, f"get_{which}lim")()
    if high / low < 100:  # powers of ten alone would be too few
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ticks.set_major_formatter(FuncFormatter(_plain))
    ticks.set_minor_formatter(NullFormatter())


def _plain(value: float, _position: int) -> str:
    return f"{value:g}"


def series(i: int) -> dict[str, Any]:
    """The colour, marker and line of the i-th series."""
    return {"color": SERIES[i % 6], "marker": MARKERS[i % 6], "linestyle": STYLES[i % 6]}


def listed(words: Sequence[str], most: int = 4) -> str:
    """Return words as a list in a sentence, with the number of those that are left out."""
    shown = [*words[:most], *([f"{len(words) - most} more"] if len(words) > most else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _saved(figure: Any, form: str, about: dict[str, Any]) -> bytes:
    """The content of a file of the figure in this form, for any background in SVG and a white one in print."""
    content = io.BytesIO()
    paper = {} if form == "svg" else {"facecolor": "white"}
    with drawing():
        figure.savefig(content, format=form, metadata=about, dpi=200, **paper)
        figure.set_layout_engine("none")  # the layout is done, and further formats keep it
    return content.getvalue()


def _for_page(svg: str, plot: Plot) -> str:
    """Make an SVG of matplotlib part of a page: with names for those who do not see it, the colours of the page, its
    font, and ids that no other plot has."""
    (box,) = re.findall(r'viewBox="([^"]+)"', svg[: svg.index(">")])
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    kept = {name for pair in used for name in pair if name}
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{plot.name}-{m[1]}"' if m[1] in kept else "", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{plot.name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{plot.name}-\1)", body)
    body = re.sub(r"(font: [^;\"]*?px|font-family:) [^;\"]*", r"\1 system-ui, sans-serif", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"\n\s*", "\n", body)
    title, about = f"{plot.name}-title", f"{plot.name}-about"
    head = f'<svg viewBox="{box}" role="img" aria-labelledby="{title} {about}" xmlns:xlink="{XLINK}">'
    names = f'<title id="{title}">{escape(plot.title)}</title><desc id="{about}">{escape(plot.about)}</desc>'
    return head + names + body.strip() + "\n"
