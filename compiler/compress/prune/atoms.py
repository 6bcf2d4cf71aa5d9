"""Union-find over numbered channels: which must be cut together, and which never."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
"""Atom numbers, one per position along an axis."""


class Atoms:
    """The channels of a graph while their dependencies are being found."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """New atoms, not tied to others yet."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def tie(self, left: Ids, right: Ids) -> None:
        """Ties atoms position by position: both are cut or neither."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            if a != b:
                low, high = min(a, b), max(a, b)
                self._parent[high] = low
                if high in self._fixed:
                    self._fixed.setdefault(low, self._fixed.pop(high))

    def fix(self, ids: Iterable[int] | Ids, reason: str) -> None:
        """Marks atoms that are never cut; a first reason stays."""
        for atom in ids:
            self._fixed.setdefault(self._root(int(atom)), reason)

    def roots(self, ids: Ids) -> Ids:
        """The representative of each atom's class."""
        return np.array([self._root(atom) for atom in ids.tolist()], dtype=np.int64)

    def reason(self, root: int) -> str:
        """Why a class is never cut; empty if it may be."""
        return self._fixed.get(root, "")

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom
