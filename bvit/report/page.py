"""A report as one HTML file that needs nothing else: style, tables and plots are in it."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

Table = tuple[str, Sequence[Sequence[str]]]

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
# Twice of what a screen shows of an inch: sharp where pixels are dense.
DOTS_PER_INCH = 150


def render(title: str, tables: Sequence[Table], figures: Mapping[str, Figure]) -> str:
    """The page.

    Args:
      title: its heading.
      tables: title and cells, header first.
      figures: title → plot, shown after the first table.
    """
    plots = [f"<h2>{html.escape(name)}</h2>\n{_image(name, one)}" for name, one in figures.items()]
    parts = [_table(*one) for one in tables]
    body = "\n".join([*parts[:1], *plots, *parts[1:]])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>"
    )


def _table(title: str, lines: Sequence[Sequence[str]]) -> str:
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
