"""Channels through Reshape: which axes are merged, which are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from compiler.compress.prune.atoms import Atoms, Ids

Size = int | str
Run = tuple[list[int], list[int]]
"""Axes before and axes after that hold the same elements."""


def reshaped(
    atoms: Atoms, labels: dict[int, Ids], before: Sequence[Size], after: Sequence[Size]
) -> dict[int, Ids] | None:
    """Labels after a reshape; None where channels are mixed with something else.

    An axis that is split into two is cut in whole rows (attention heads), unless its columns are tied already
    (the channels of a grouped convolution, shuffled).
    """
    runs = list(_runs(before, after))
    covered = {axis for run, _ in runs for axis in run}
    if labels.keys() - covered:
        return None
    made: dict[int, Ids] = {}
    for old, new in runs:
        named = [axis for axis in old if axis in labels]
        if not named:
            continue
        part = _one_run(atoms, labels, named, [(axis, before[axis]) for axis in old], [(a, after[a]) for a in new])
        if part is None:
            return None
        made |= part
    return made


def _one_run(
    atoms: Atoms, labels: dict[int, Ids], named: list[int], old: list[tuple[int, Size]], new: list[tuple[int, Size]]
) -> dict[int, Ids] | None:
    if len(named) != 1 or any(isinstance(size, str) for _, size in (*old, *new)):
        return None
    sizes = [int(size) for _, size in old]
    place = [axis for axis, _ in old].index(named[0])
    wide = [(axis, int(size)) for axis, size in new if size != 1]
    grid = labels[named[0]].reshape([-1 if index == place else 1 for index in range(len(sizes))])
    flat = np.broadcast_to(grid, sizes).reshape(-1)
    if len(wide) <= 1:
        return {(wide or [(new[0][0], 1)])[0][0]: flat}
    return _split(atoms, flat, wide) if prod(sizes) == sizes[place] else _moved(flat, wide)


def _split(atoms: Atoms, ids: Ids, wide: list[tuple[int, int]]) -> dict[int, Ids] | None:
    if len(wide) != 2:
        return None
    (outer, rows), (inner, _) = wide
    table = ids.reshape(rows, -1)
    if (atoms.roots(table.reshape(-1)).reshape(table.shape) == atoms.roots(table[0])).all():
        return {inner: table[0]}
    for column in table.T[1:]:
        atoms.tie(table[:, 0], column)
    return {outer: table[:, 0]}


def _moved(flat: Ids, wide: list[tuple[int, int]]) -> dict[int, Ids] | None:
    """Axes regrouped: possible if the channels vary along one new axis only."""
    table = flat.reshape([size for _, size in wide])
    for place, (axis, _) in enumerate(wide):
        line = np.moveaxis(table, place, 0).reshape(table.shape[place], -1)
        if (line == line[:, :1]).all():
            return {axis: line[:, 0]}
    return None


def _runs(before: Sequence[Size], after: Sequence[Size]) -> Iterator[Run]:
    """Shortest segments of axes with equal products; a symbolic size matches its own name only."""
    i = j = 0
    while i < len(before) and j < len(after):
        old, new = [i], [j]
        if isinstance(before[i], str) or isinstance(after[j], str):
            if before[i] != after[j]:
                return
            yield old, new
            i, j = i + 1, j + 1
            continue
        a, b = int(before[i]), int(after[j])
        while a != b:
            if a < b:
                i += 1
                if i >= len(before) or isinstance(before[i], str):
                    return
                old.append(i)
                a *= int(before[i])
            else:
                j += 1
                if j >= len(after) or isinstance(after[j], str):
                    return
                new.append(j)
                b *= int(after[j])
        yield old, new
        i, j = i + 1, j + 1
