"""How the vectors of a machine hold int8 and the sums of its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from targets.arm_tvm.kernels.emitter import broadcast, cast, exclusive_or
from targets.arm_tvm.kernels.integer.specs import Dot


@dataclass(frozen=True)
class Vectors:
    """The vector unit as the integer kernels use it.

    Args:
        lanes: Sums of one register, and so results that are requantized together.
        registers: Vector registers there are.
        stored: Type of activations in memory. `uint8`: each is stored 128 higher than it is, because the machine
            multiplies unsigned activations with signed weights; sums then begin at −128 · Σ weights.
        by_lane: Whether a product takes one lane of a register of inputs; else it takes four inputs from memory.
        tiled: Whether sums are made in AMX's tiles.
    """

    lanes: int = 4
    registers: int = 32
    stored: Literal["int8", "uint8"] = "int8"
    by_lane: bool = True
    tiled: bool = False

    @property
    def moved(self) -> bool:
        """Whether activations are stored 128 higher than they are."""
        return self.stored == "uint8"

    def constant(self, value: int) -> int:
        """An activation as it is stored."""
        return value + OFFSET if self.moved else value

    def signed(self, vector: Any) -> Any:
        """Activations that were loaded → int8."""
        if not self.moved:
            return vector
        return cast(f"int8x{_size(vector)}", exclusive_or(vector, broadcast(OFFSET, _size(vector), "uint8")))

    def unsigned(self, vector: Any) -> Any:
        """int8 → activations as they are stored."""
        if not self.moved:
            return vector
        return exclusive_or(cast(f"uint8x{_size(vector)}", vector), broadcast(OFFSET, _size(vector), "uint8"))


OFFSET = 128
"""From −128…127 to 0…255."""

_NEON = Vectors()
_VECTORS: dict[Dot, Vectors] = {
    "smmla": _NEON,
    "sdot": _NEON,
    "widen": _NEON,
    "generic": _NEON,
    "amx_int8": Vectors(lanes=16, stored="uint8", by_lane=False, tiled=True),
    "avx512_vnni": Vectors(lanes=16, stored="uint8", by_lane=False),
    "avx_vnni": Vectors(lanes=8, registers=16, stored="uint8", by_lane=False),
}


def vectors_of(dot: Dot) -> Vectors:
    """The vectors of machines that multiply so."""
    return _VECTORS[dot]


def _size(vector: Any) -> int:
    return int(vector.ty.dtype.lanes)
