"""Tables as pieces of HTML, which notebooks show. They need no style sheet, and all text in them is escaped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    right: Collection[int] = (),
    bold: Collection[int] = (),
) -> str:
    """Return a table as HTML.

    Args:
        heads: the names of the columns. rows: plain text, a string for each column.
        right: the numbers of the columns that are aligned right. bold: the numbers of the rows in bold.
    """

    def cell(tag: str, column: int, text: str) -> str:
        side = "right" if column in right else "left"
        return f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>'

    def line(tag: str, texts: Sequence[str], style: str = "") -> str:
        return f"<tr{style}>" + "".join(cell(tag, i, text) for i, text in enumerate(texts)) + "</tr>"

    body = [line("td", row, ' style="font-weight: bold"' if i in bold else "") for i, row in enumerate(rows)]
    title = f'<caption style="text-align: left">{escape(caption)}</caption>' if caption else ""
    return "\n".join([f"<table>{title}<thead>{line('th', heads)}</thead><tbody>", *body, "</tbody></table>"])


def html_list(items: Iterable[str]) -> str:
    """Return a list as HTML; "" without items."""
    lines = [f"<li>{escape(item)}</li>" for item in items]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""
