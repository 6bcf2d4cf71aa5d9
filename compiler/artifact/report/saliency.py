"""Strips of pictures with their saliency maps, as PNG in data URIs; words stand beside them, in the page's own text."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from compiler.artifact.schema.saliency import MAX_SIDE, Map, Saliency, Shown

PANEL_IN, DOTS_PER_INCH = 1.2, 100
"""A panel is 120 pixels wide: a strip takes some twenty kilobytes."""

COLORS = "RdBu_r"
"""Red where covering costs score, blue where it adds to it, white in between; told apart by the colour-blind."""


@dataclass(frozen=True)
class Strip:
    """One picture, the float model's map and the build's, side by side; what it says to who does not see it."""

    uri: str
    label: str
    caption: str


def strips(saliency: Saliency) -> tuple[Strip, ...]:
    """The pictures that a manifest keeps, those that cannot be decoded left out."""
    pairs = ((place, shown, _decoded(shown.png)) for place, shown in enumerate(saliency.shown, 1))
    return tuple(_strip(place, shown, picture) for place, shown, picture in pairs if picture is not None)


def _strip(place: int, shown: Shown, picture: NDArray[np.uint8]) -> Strip:
    correlation = "not defined" if shown.correlation is None else f"{shown.correlation:.3f}"
    peaks = " and ".join(_peak(saliency_map) for saliency_map in (shown.original, shown.build))
    label = f"Picture {place}, the float model's map and the build's; what matters most is {peaks}."
    return Strip(_drawn(shown, picture), label, f"rank correlation {correlation}")


def _peak(saliency_map: Map) -> str:
    """Where a map is largest, in words."""
    values = np.array(saliency_map)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    down = ("top", "middle", "bottom")[int(3 * row // values.shape[0])]
    across = ("left", "centre", "right")[int(3 * column // values.shape[1])]
    return f"at the {down} {across}"


def _drawn(shown: Shown, picture: NDArray[np.uint8]) -> str:
    figure = Figure(figsize=(3 * PANEL_IN, PANEL_IN), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.04)
    axes = figure.subplots(1, 3)
    axes[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
    for place, saliency_map in ((1, shown.original), (2, shown.build)):
        axes[place].imshow(np.array(saliency_map), cmap=COLORS, vmin=-1, vmax=1)
    for one_axes in axes:
        one_axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _decoded(png: str) -> NDArray[np.uint8] | None:
    """The pixels of a kept picture; None where it is no PNG, or a large one."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=["PNG"]) as image:
            if max(image.size) > MAX_SIDE:
                return None
            return np.asarray(image.convert("RGB" if image.mode not in ("1", "L") else "L"))
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for bytes that are no picture
        return None
