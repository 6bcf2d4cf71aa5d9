"""Pictures to inputs: decoding files that nobody vouches for, and the steps of `preprocess:`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError
from compiler.fleet.data import Preprocess
from compiler.model.numerics import Array
from compiler.model.spec import TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")

MAX_PIXELS = 1 << 26
"""64 million: beyond any camera's picture that a model is fed with; 200 MB decoded, per thread."""

_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def input_layout(spec: TensorSpec, preprocess: Preprocess) -> tuple[int, int, bool]:
    """Height, width, and whether channels come first, of a model's picture input.

    Raises:
        DataError: The input takes no pictures, or not these.
    """
    where, channels = f"input '{spec.name}'", 1 if preprocess.color == "gray" else 3
    sizes = ", ".join(map(str, spec.shape))
    if len(spec.shape) != 4 or channels not in (spec.shape[1], spec.shape[3]):
        what = f"its shape ({sizes}) is no batch of pictures with {channels} channels"
        raise DataError(what, where=where, remedy="Check `preprocess.color`, or give arrays instead of pictures.")
    first = spec.shape[1] == channels
    own = spec.shape[2:] if first else spec.shape[1:3]
    for want, got in zip(own, preprocess.size or (), strict=False):
        if isinstance(want, int) and want != got:
            raise DataError(
                f"`preprocess.size` is {list(preprocess.size or ())}, the model takes ({sizes})", where=where
            )
    height, width = preprocess.size or own
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(
            f"its height and width are not fixed: ({sizes})", where=where, remedy="State `preprocess.size`."
        )
    _check_dtype(spec, preprocess)
    return height, width, first


def _check_dtype(spec: TensorSpec, preprocess: Preprocess) -> None:
    raw = preprocess.scale == 1 and not preprocess.mean and not preprocess.std
    if spec.dtype not in ("float32", "float16", "float64") and not (spec.dtype == "uint8" and raw):
        what = f"pictures become floats by `preprocess`, the model takes {spec.dtype}"
        raise DataError(what, where=f"input '{spec.name}'", remedy="Leave scale, mean and std out, or give arrays.")


def check_picture(path: Path) -> DataError | None:
    """What the head of a file says against reading it, without decoding anything; None where nothing does."""
    try:
        _open(path).close()
    except DataError as error:
        return error
    return None


def load_picture(path: Path, spec: TensorSpec, preprocess: Preprocess) -> Array:
    """A file as an input of the model with a batch of 1.

    Raises:
        DataError: It cannot be decoded, or the model takes no such pictures.
    """
    with _open(path) as picture:
        try:
            picture.load()
        except (OSError, ValueError, SyntaxError, MemoryError) as error:
            raise DataError(f"the picture cannot be decoded: {error}", where=str(path)) from error
        return to_input(picture, spec, preprocess)


def to_input(picture: Image, spec: TensorSpec, preprocess: Preprocess) -> Array:
    """A decoded picture as an input of the model with a batch of 1; raises as `input_layout`."""
    height, width, first = input_layout(spec, preprocess)
    colored = picture.convert("L" if preprocess.color == "gray" else "RGB")
    values = _values(_resized(_with_margin(colored, preprocess.margin_pct), (height, width), preprocess), preprocess)
    planes = values.transpose(2, 0, 1) if first else values
    return np.ascontiguousarray(planes[None].astype(spec.dtype))


def _values(picture: Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """(H, W, C) of a resized picture: channels ordered, scaled, shifted and divided."""
    values: NDArray[np.float32] = np.asarray(picture, np.float32).reshape(picture.height, picture.width, -1)
    if preprocess.color == "bgr":
        values = values[..., ::-1]
    if preprocess.scale != 1:
        values = values / np.float32(preprocess.scale)
    if preprocess.mean:
        values = values - np.asarray(preprocess.mean, np.float32)
    if preprocess.std:
        values = np.divide(values, np.asarray(preprocess.std, np.float32), dtype=np.float32)
    return values


def _open(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        picture = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        what = f"it is no picture of a kind that is read ({', '.join(FORMATS)})"
        raise DataError(what, where=str(path)) from error
    except bombs as error:
        raise DataError(f"the picture is too large: {error}", where=str(path)) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the picture cannot be read: {error}", where=str(path)) from error
    if picture.width * picture.height > MAX_PIXELS or picture.mode not in _MODES:
        picture.close()
        what = f"{picture.width} x {picture.height} pixels of mode {picture.mode} are not read"
        remedy = f"Use at most {MAX_PIXELS} pixels, and 8 bits a channel."
        raise DataError(what, where=str(path), remedy=remedy)
    return picture


def _with_margin(picture: Image, margin_pct: float) -> Image:
    from PIL import ImageOps

    across, down = (round(margin_pct / 100 * side) for side in picture.size)
    if margin_pct >= 0:
        return ImageOps.expand(picture, (across, down), 0) if across or down else picture
    return picture.crop((-across, -down, picture.width + across, picture.height + down))


def _resized(picture: Image, size: tuple[int, int], preprocess: Preprocess) -> Image:
    from PIL import Image, ImageOps

    method = Image.Resampling[preprocess.interpolation.upper()]
    shape = (size[1], size[0])
    if preprocess.fit == "crop":
        return ImageOps.fit(picture, shape, method)
    if preprocess.fit == "pad":
        return ImageOps.pad(picture, shape, method)
    return picture.resize(shape, method)
