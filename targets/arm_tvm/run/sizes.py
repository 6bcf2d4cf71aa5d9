"""The sizes that a bundle with a range takes: what inputs are of, and what outputs have at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.target import Arrays, Artifact, DataError, TensorSpec


@dataclass(frozen=True)
class OpenSizes:
    """The range of a bundle, as its facts state it; fields as of `targets.arm_tvm.graph.sizes.Sizes`.

    Args:
        shapes: Tensor → its shape at each built size.
    """

    dimension: str
    least: int
    most: int
    built: Sequence[int]
    divides: bool
    shapes: Mapping[str, Sequence[Sequence[int]]]

    def shape_at(self, name: str, size: int) -> tuple[int, ...]:
        """The shape of a tensor at a size that the bundle takes."""
        shapes = self.shapes[name]
        if size in self.built:
            return tuple(shapes[list(self.built).index(size)])
        extents = list(zip(*shapes, strict=True))
        return tuple(own[0] if len(set(own)) == 1 else own[0] // self.built[0] * size for own in extents)

    def size_of(self, inputs: Arrays) -> int:
        """The size that inputs are of.

        Raises:
            DataError: They are of none, of several, or of one out of the range.
        """
        candidates = {name: self._sizes_of(name, array.shape) for name, array in inputs.items()}
        known = {name: sizes for name, sizes in candidates.items() if sizes is not None}
        common = sorted(set.intersection(*known.values())) if known else [self.least]
        if not common:
            given = ", ".join(f"'{name}' {inputs[name].shape}" for name in known)
            raise DataError(f"the bundle takes inputs of one {self.dimension}; given are {given}")
        (size,) = common[:1]
        if not self.least <= size <= self.most:
            raise DataError(f"{self.dimension} is {size}; the bundle takes {self.least} to {self.most}")
        return size

    def _sizes_of(self, name: str, shape: tuple[int, ...]) -> set[int] | None:
        """Sizes at which a tensor has a shape; None where it is the same at all."""
        extents = list(zip(*self.shapes[name], strict=True))
        axes = [axis for axis, own in enumerate(extents) if len(set(own)) > 1]
        if not axes:
            return None
        if not self.divides:
            return {size for size in self.built if self.shape_at(name, size) == shape}
        count = extents[axes[0]][0] // self.built[0]
        size = shape[axes[0]] // count if len(shape) == len(extents) else 0
        return {size} if size and self.shape_at(name, size) == shape else set()


def open_sizes(artifact: Artifact) -> OpenSizes | None:
    """The range of a bundle; None where all its sizes are fixed."""
    facts: Any = artifact.facts.get("sizes")
    if facts is None:
        return None
    return OpenSizes(**{name: facts[name] for name in OpenSizes.__dataclass_fields__})


def shape_of_output(spec: TensorSpec, sizes: OpenSizes | None, inputs: Arrays) -> tuple[int, ...]:
    """The shape that an output has for given inputs."""
    if sizes is None:
        return tuple(int(size) for size in spec.shape)
    return sizes.shape_at(spec.name, sizes.size_of(inputs))
