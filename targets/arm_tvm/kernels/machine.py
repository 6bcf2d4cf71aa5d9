"""What kernels must know of a CPU: vector width, registers, and how scalars reach the multipliers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from targets.arm_tvm.kernels.x86_cores import has
from targets.arm_tvm.options import Options


class Bfloat16(StrEnum):
    """How a core multiplies bfloat16 and adds up in float32."""

    NONE = ""
    AVX512 = "vdpbf16ps"
    AMX = "tdpbf16ps"


@dataclass(frozen=True)
class Machine:
    """The vector unit of a core.

    Args:
        vector_bits: Width of one register.
        registers: Vector registers there are.
        by_element: Whether a multiply-add takes one lane of a register as its scalar; else scalars come from memory.
        pairs: Whether one instruction loads two neighbouring registers.
        bytes_per_instruction: Weights that arrive from memory while one vector instruction is executed; 0 where costs
            leave memory out, because they are to be confirmed as instruction counts.
        bfloat16: The instructions that multiply bfloat16.
    """

    vector_bits: int = 128
    registers: int = 32
    by_element: bool = True
    pairs: bool = True
    bytes_per_instruction: float = 0.0
    bfloat16: Bfloat16 = Bfloat16.NONE

    def lanes(self, dtype: str) -> int:
        """Elements of a type in one register: the block of channels in the packed layout."""
        return self.vector_bits // {"float16": 16, "float32": 32}[dtype]

    def streaming_cost(self, elements: float, dtype: str) -> float:
        """Instructions that could be executed while weights come from memory, as those of a whole model do."""
        size = {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]
        return elements * size / self.bytes_per_instruction if self.bytes_per_instruction else 0.0


WIDE_BYTES = 4.0
"""Of one core with AVX-512: about 6 bytes a cycle from the third-level cache or memory, 1.5 vector instructions."""


def machine_of(options: Options) -> Machine:
    """The machine that the options describe, by LLVM's names of cores and features."""
    if options.arch == "aarch64":
        # The defaults are NEON's: 32 registers of 128 bits, multiply-adds by element, ldp.
        return Machine()
    if has("avx512f", options.mcpu, options.mattr):
        # AVX-512 has 32 registers too; its multiply-adds broadcast a scalar from memory.
        return Machine(
            vector_bits=512,
            by_element=False,
            pairs=False,
            bytes_per_instruction=WIDE_BYTES,
            bfloat16=_bfloat16_of(options),
        )
    # AVX2 and SSE have 16 registers, no multiply-add by element, and no load of two registers.
    bits = 256 if has("avx2", options.mcpu, options.mattr) else 128
    return Machine(vector_bits=bits, registers=16, by_element=False, pairs=False)


def _bfloat16_of(options: Options) -> Bfloat16:
    """Of a core with AVX-512; AMX's kernels convert with AVX512-BF16."""
    if not has("avx512bf16", options.mcpu, options.mattr):
        return Bfloat16.NONE
    tiles = all(has(extension, options.mcpu, options.mattr) for extension in ("amx-tile", "amx-bf16"))
    return Bfloat16.AMX if tiles else Bfloat16.AVX512
