"""Figures as SVG text that takes its colours and its fonts from the page: matplotlib draws, the page's styles paint.

Each colour that matplotlib is given stands for one custom property of the page (`INK` for `--ink`), so one drawing
serves light, dark and print.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PROPERTIES = (
    "ink",
    "muted",
    "line",
    "good",
    "bad",
    "fp32",
    "fp16",
    "bf16",
    "fp16-weights",
    "int8",
    "fp8",
    "int8-weights",
    "int4-weights",
    "int4-weights-int8",
)
COLORS = {name: f"#0101{index:02x}" for index, name in enumerate(PROPERTIES, 1)}
"""Custom property of the page → the colour that stands for it in a drawing."""

INK, MUTED, LINE, GOOD, BAD = (COLORS[name] for name in ("ink", "muted", "line", "good", "bad"))

_STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


def precision_color(precision: str) -> str:
    """The colour of a precision; an unknown one is drawn like other text."""
    return COLORS.get(precision, MUTED)


@contextmanager
def drawing(width_in: float, height_in: float, *, salt: str) -> Iterator[Figure]:
    """A figure to draw on, in the report's style.

    Args:
        width_in: Inches of 72 points; the page shows a point as a CSS pixel and a third.
        height_in: The same.
        salt: Makes the names of shapes within the figure unlike those of the page's other figures.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure


def svg_of(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for a page; call it within `drawing`.

    Args:
        figure: What was drawn.
        label: What a screen reader says of it.
    """
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = _without_ids(svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return re.sub(r"<svg [^>]*>", lambda match: _head(match.group(), label), svg, count=1)


def _head(tag: str, label: str) -> str:
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', tag)
    width, height = box.groups() if box else ("360", "240")
    size = f'viewBox="0 0 {width} {height}" style="--w:{float(width):g}"'
    return f'<svg {size} role="img" aria-label="{html.escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'


def _without_ids(svg: str) -> str:
    """Drops the identifiers that nothing in the drawing refers to: a page holds many drawings."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    return re.sub(r' id="([^"]*)"', lambda match: match.group() if match.group(1) in used else "", svg)
