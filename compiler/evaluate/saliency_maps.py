"""Which parts of a picture a model's score hangs on, found by covering them: without gradients, so of any artifact.

Occlusion (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014): a window is covered
with the picture's mean colour, and what the score loses hangs on what was there.

Deletion and insertion (Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
BMVC 2018): patches are covered, or uncovered, in the order of a map, and the area under the score's curve tells how
well the map orders them for the model it is of.

RISE's own maps are not used: their random masks are the same for both models, so at an affordable number of masks the
noise is the same too, and two maps agree that should not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
"""(H, W): whether a pixel is seen."""

PATCHES = 10
"""Patches along a side; a window covers two by two of them. More make a finer map, and the square of it in cost."""

STEPS = 10
"""Steps in which deletion and insertion go from all of a picture to none, and back."""

LEAST_SIDE = 4
"""Pixels: a smaller input has no parts to cover."""

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class PictureInput:
    """The input that takes pictures.

    Args:
        name: Its name.
        channels_first: Whether it is (N, C, H, W); (N, H, W, C) otherwise.
    """

    name: str
    channels_first: bool

    def sides(self, picture: Array) -> tuple[int, int]:
        """Height and width of a picture with a batch of 1."""
        height, width = picture.shape[2:] if self.channels_first else picture.shape[1:3]
        return height, width

    def covered(self, picture: Array, mask: Mask) -> Array:
        """A picture with a batch of 1, in its mean colour where the mask is false."""
        spread = mask[None, None] if self.channels_first else mask[None, :, :, None]
        axes = (2, 3) if self.channels_first else (1, 2)
        mean = picture.mean(axis=axes, keepdims=True, dtype=np.float64)
        fill = (mean.round() if picture.dtype.kind in "iu" else mean).astype(picture.dtype)
        return np.where(spread, picture, fill)


@dataclass(frozen=True)
class Grid:
    """A picture cut into patches, by the edges of its rows and columns in pixels, both ends among them."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows: each covers two by two patches, and half of the next one."""
        return len(self.rows) - 2, len(self.columns) - 2

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows[-1], self.columns[-1]


def find_picture(inputs: Sequence[TensorSpec]) -> PictureInput | str:
    """The one input that takes pictures, or why there is none."""
    pictures = [spec for spec in inputs if _channels_first(spec) is not None]
    if not pictures:
        return "the model has no image input: none has four dimensions of which one counts 1, 3 or 4 channels"
    if len(pictures) > 1:
        return f"the model has several image inputs ({', '.join(spec.name for spec in pictures)}), and one is explained"
    return PictureInput(pictures[0].name, bool(_channels_first(pictures[0])))


def cut(height: int, width: int) -> Grid:
    """The patches of a picture of so many pixels."""
    return Grid(_edges(height), _edges(width))


def window_masks(grid: Grid) -> Iterator[Mask]:
    """All of the picture, nothing of it, then all but one window, row by row."""
    yield np.ones(grid.sides, np.bool_)
    yield np.zeros(grid.sides, np.bool_)
    for row in range(grid.shape[0]):
        for column in range(grid.shape[1]):
            mask = np.ones(grid.sides, np.bool_)
            mask[grid.rows[row] : grid.rows[row + 2], grid.columns[column] : grid.columns[column + 2]] = False
            yield mask


def order_masks(grid: Grid, saliency_map: Floats) -> Iterator[Mask]:
    """Deletion, then insertion, in the order of a map: `STEPS` − 1 masks each, the ends left out.

    Args:
        grid: The picture's.
        saliency_map: Its map, one value per window.
    """
    importance = _of_patches(saliency_map)
    places = np.argsort(-importance, axis=None, kind="stable")
    counts = np.linspace(0, len(places), STEPS + 1).round().astype(int)[1:-1]
    for starts_seen in (True, False):
        for count in counts:
            seen = np.full(importance.size, starts_seen)
            seen[places[:count]] = not starts_seen
            yield _in_pixels(grid, seen.reshape(importance.shape))


def _channels_first(spec: TensorSpec) -> bool | None:
    if len(spec.shape) != 4 or not (spec.dtype.startswith("float") or spec.dtype == "uint8"):
        return None
    for first, channels, sides in ((True, spec.shape[1], spec.shape[2:]), (False, spec.shape[3], spec.shape[1:3])):
        if channels in _CHANNELS and all(isinstance(side, str) or side >= LEAST_SIDE for side in sides):
            return first
    return None


def _edges(side: int) -> tuple[int, ...]:
    return tuple(np.linspace(0, side, min(PATCHES, side) + 1).round().astype(int).tolist())


def _of_patches(saliency_map: Floats) -> Floats:
    """Each patch has the mean of the windows that cover it."""
    rows, columns = saliency_map.shape
    total, count = np.zeros((rows + 1, columns + 1)), np.zeros((rows + 1, columns + 1))
    for down in (0, 1):
        for right in (0, 1):
            total[down : down + rows, right : right + columns] += saliency_map
            count[down : down + rows, right : right + columns] += 1
    return total / count


def _in_pixels(grid: Grid, patches: Mask) -> Mask:
    tall = np.repeat(patches, np.diff(grid.rows), axis=0)
    return np.repeat(tall, np.diff(grid.columns), axis=1)
