"""How an array of samples is laid out: as rows, as complete inputs one after another, or as one for all samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from compiler.model.spec import TensorSpec

BATCH = "batch"
"""The name of a batch dimension left symbolic."""


class Layout(StrEnum):
    """What the axes of an array are, for an input of shape (batch, …) or of a shape without a batch."""

    ROWS = "rows"
    """(samples, …): the first axis counts samples, and is the batch of the model."""
    STACKED = "stacked"
    """(samples, *input): a complete input per sample."""
    SHARED = "shared"
    """(*input): the array as the model takes it, the same for every sample."""


def find_layouts(inputs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layout]:
    """The layout of each input's array; the shapes must fit (`fits`).

    An array of exactly the input's shape may be rows or shared. It is shared where the input's first dimension is a
    number and no batch: another input has one, or the inputs' first dimensions differ. Otherwise it is rows, if that
    makes as many samples as the other arrays hold.
    """
    layouts = {spec.name: _layout(spec, shapes[spec.name]) for spec in inputs}
    firsts = {spec.shape[0] for spec in inputs if spec.shape}
    no_batch = (
        {spec.name for spec in inputs if spec.shape and isinstance(spec.shape[0], int) and spec.shape[0] > 1}
        if len(firsts) > 1
        else set()
    )
    counts = {shapes[name][0] for name, layout in layouts.items() if layout in (Layout.ROWS, Layout.STACKED)}
    return {
        name: layout or (Layout.SHARED if name in no_batch or counts - {shapes[name][0]} else Layout.ROWS)
        for name, layout in layouts.items()
    }


def fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape is in any of the layouts."""
    return _is_shared(spec, shape) or _is_stacked(spec, shape) or _are_rows(spec, shape)


def forms(spec: TensorSpec) -> str:
    """The shapes an array of samples may have, for a message."""
    own = ", ".join(map(str, spec.shape))
    rows = ", ".join(["samples", *map(str, spec.shape[1:])])
    stacked = ", ".join(["samples", *map(str, spec.shape)])
    if spec.shape and spec.shape[0] == BATCH:
        return f"Save it as ({rows}): one row per sample."
    alone = f"{own}," if len(spec.shape) == 1 else own
    return f"Save it as ({alone}), the same for every sample, or as ({stacked}), one per sample."


def _layout(spec: TensorSpec, shape: tuple[int, ...]) -> Layout | None:
    """The layout where only one is possible; None where the array may be rows or shared."""
    if _is_stacked(spec, shape):
        return Layout.STACKED
    if not spec.shape:
        return Layout.SHARED
    return Layout.ROWS if spec.shape[0] == BATCH or not _is_shared(spec, shape) else None


def _is_shared(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return _matches(spec.shape, shape) and (not spec.shape or spec.shape[0] != BATCH)


def _is_stacked(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) + 1 and _matches(spec.shape, shape[1:])


def _are_rows(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    return bool(spec.shape) and len(shape) == len(spec.shape) and _matches(spec.shape[1:], shape[1:])


def _matches(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        size == dim if isinstance(dim, int) else size > 0 for dim, size in zip(wanted, shape, strict=True)
    )
