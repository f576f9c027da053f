"""A report as text: tables in Markdown, lines of CSV, or one HTML file with its plots in it."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from bvit.evaluation.rows import align
from bvit.outputs import MARK

Table = tuple[str, Sequence[Sequence[str]]]  # Its title, and its cells with the header first.

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
       color: #222; background: #fff; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
         white-space: nowrap; }
th { border-bottom: 2px solid #888; background: #f6f6f6; }
tbody tr:hover { background: #f2f7ff; }
img { max-width: 100%; }
"""
# Images are shown at half their size, so that they are sharp on screens with dense pixels.
DOTS_PER_INCH = 150


def as_markdown(tables: Sequence[Table]) -> str:
    """The tables under headings."""
    return "\n\n".join(f"### {title}\n\n{align(lines)}" for title, lines in tables)


def as_csv(lines: Sequence[Sequence[Any]]) -> str:
    """One table, header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().rstrip()


def as_html(title: str, tables: Sequence[Table], figures: Mapping[str, Figure]) -> str:
    """The whole page.

    Args:
      title: its heading.
      tables: in their order.
      figures: title → plot, shown after the first table.
    """
    plots = [f"<h2>{html.escape(name)}</h2>\n{_image(name, one)}" for name, one in figures.items()]
    parts = [_html_table(*one) for one in tables]
    body = "\n".join([*parts[:1], *plots, *parts[1:]])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>"
    )


def marked(text: str, form: str) -> str:
    """A report as it is written to a file: with a mark that bvit wrote it, where there is room.

    Args:
      text: of one of the functions above.
      form: "markdown", "html" or "csv", which has no comments.
    """
    return text + "\n" if form == "csv" else f"{text}\n<!-- {MARK} -->\n"


def _html_table(title: str, lines: Sequence[Sequence[str]]) -> str:
    head, *rows = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(["th", *["td"] * len(lines)], lines, strict=False)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<h2>{html.escape(title)}</h2>\n<div><table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _image(name: str, figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    width = round(figure.get_figwidth() * DOTS_PER_INCH / 2)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" width="{width}" src="data:image/png;base64,{data}">'
