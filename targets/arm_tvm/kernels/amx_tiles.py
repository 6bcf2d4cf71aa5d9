"""AMX's eight tile registers: their shapes, loads, stores, and products of two tiles added to a third."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, address, effect, store

ROW_BYTES = 64
"""Of a tile, at most: 16 words."""
REGISTERS = 8


def set_shapes(emitter: Emitter, shapes: Sequence[tuple[int, int]]) -> None:
    """Rows, and bytes of a row, of the first tile registers, in the form of palette 1."""
    from tvm import tirx

    setting = bytearray(ROW_BYTES)
    setting[0] = 1
    for register, (rows, row_bytes) in enumerate(shapes):
        setting[16 + 2 * register : 18 + 2 * register] = row_bytes.to_bytes(2, "little")
        setting[48 + register] = rows
    buffer = emitter.allocate(ROW_BYTES // 8, "int64", "local")
    for index in range(ROW_BYTES // 8):
        value = int.from_bytes(setting[8 * index : 8 * index + 8], "little")
        emitter.add(store(buffer, index, tirx.const(value, "int64"), 1))
    effect(emitter, "llvm.x86.ldtilecfg", address(buffer, 0))


def load_tile(emitter: Emitter, register: int, begin: Any, distance: int) -> None:
    """Loads a tile whose rows begin `distance` bytes apart; they may overlap, and 0 repeats one row."""
    effect(emitter, "llvm.x86.tileloadd64", _byte(register), begin, _int64(distance))


def store_tile(emitter: Emitter, register: int, begin: Any) -> None:
    """Stores a tile of whole rows, one after the other."""
    effect(emitter, "llvm.x86.tilestored64", _byte(register), begin, _int64(ROW_BYTES))


def add_products(emitter: Emitter, instruction: str, sums: int, rows: int, columns: int) -> None:
    """Adds to a tile of sums the products of two tiles.

    Args:
        emitter: Takes the code.
        instruction: `tdpbusd` or another of the same form.
        sums, rows, columns: The registers.
    """
    effect(emitter, f"llvm.x86.{instruction}", *map(_byte, (sums, rows, columns)))


def release_tiles(emitter: Emitter) -> None:
    """Gives the tiles back: a thread with tiles in use costs more to switch."""
    effect(emitter, "llvm.x86.tilerelease")


def _byte(value: int) -> Any:
    from tvm import tirx

    return tirx.const(value, "int8")


def _int64(value: int) -> Any:
    from tvm import tirx

    return tirx.const(value, "int64")
