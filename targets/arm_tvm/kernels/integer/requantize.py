"""Requantization of accumulators to results, in registers.

Per four results: scvtf, fmul, fadd (+ sxtl, scvtf, fmla for a residual), fcvtns, and half of two sqxtn. fcvtns rounds
halves to even and sqxtn saturates, as ONNX's QuantizeLinear does. An activation is a clamp of the int8 result, sixteen
at a time: rounding is monotone, so it may be done after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, cast, intrinsic, load, shuffle, store
from targets.arm_tvm.kernels.integer.specs import Dot, Epilogue


def scaled(
    accumulators: Sequence[Any], scales: Sequence[Any], biases: Sequence[Any], residual: Any, epilogue: Epilogue
) -> list[Any]:
    """acc · scale + bias (+ residual · its scale), in vectors of four.

    Args:
        accumulators: int32x4 each.
        scales: float32x4 each.
        biases: float32x4 each.
        residual: int8 vector of all channels, or None.
        epilogue: For the residual's scale.
    """
    values = [
        cast("float32x4", acc) * scale + bias for acc, scale, bias in zip(accumulators, scales, biases, strict=True)
    ]
    if residual is None or epilogue.residual_scale is None:
        return values
    factor = broadcast(epilogue.residual_scale, 4, "float32")
    return [value + cast("float32x4", part) * factor for value, part in zip(values, quarters(residual), strict=True)]


def quarters(vector: Any) -> list[Any]:
    """int8xN → the int32x4 in it, widened in halves as the instructions do."""
    lanes = int(vector.ty.dtype.lanes)
    if lanes == 4:
        return [cast("int32x4", vector)]
    half = lanes // 2
    if lanes == 8:
        wide = cast("int32x8", cast("int16x8", vector))
        return [shuffle([wide], range(start, start + 4)) for start in (0, 4)]
    return [part for start in (0, half) for part in quarters(shuffle([vector], range(start, start + half)))]


def quantized(values: Sequence[Any], epilogue: Epilogue, dot: Dot) -> Any:
    """float32x4 vectors (1, 2 or 4 of them) → one int8 vector."""
    vector = _generic(values, epilogue) if dot == "generic" else _saturated(values, epilogue)
    lanes = 4 * len(values)
    from tvm import tirx

    if epilogue.low > -128:
        vector = tirx.Max(vector, broadcast(int(epilogue.low), lanes, "int8"))
    if epilogue.high < 127:
        vector = tirx.Min(vector, broadcast(int(epilogue.high), lanes, "int8"))
    return vector


def _generic(values: Sequence[Any], epilogue: Epilogue) -> Any:
    from tvm import tirx

    whole = values[0] if len(values) == 1 else shuffle(values, range(4 * len(values)))
    lanes = 4 * len(values)
    # nearbyint rounds halves to even, as fcvtns and QuantizeLinear do.
    rounded = tirx.nearbyint(whole) + broadcast(epilogue.zero_point, lanes, "float32")
    limited = tirx.Min(tirx.Max(rounded, broadcast(-128.0, lanes, "float32")), broadcast(127.0, lanes, "float32"))
    return cast(f"int8x{lanes}", cast(f"int32x{lanes}", limited))


def _saturated(values: Sequence[Any], epilogue: Epilogue) -> Any:
    narrow = [
        intrinsic(
            "int16x4",
            "llvm.aarch64.neon.sqxtn.v4i16",
            intrinsic("int32x4", "llvm.aarch64.neon.fcvtns.v4i32.v4f32", value),
        )
        for value in values
    ]
    pairs = [shuffle(narrow[at : at + 2], range(8)) for at in range(0, len(narrow) - 1, 2)]
    # sqxtn takes eight elements: four of them are doubled, and the second half is dropped below.
    pairs = pairs or [shuffle([narrow[0], narrow[0]], range(8))]
    if epilogue.zero_point:
        offset = broadcast(epilogue.zero_point, 8, "int16")
        # Saturating, since the zero point could move a value past the limits of int16.
        pairs = [intrinsic("int16x8", "llvm.sadd.sat.v8i16", pair, offset) for pair in pairs]
    bytes_ = [intrinsic("int8x8", "llvm.aarch64.neon.sqxtn.v8i8", pair) for pair in pairs]
    if len(values) == 1:
        return shuffle(bytes_, range(4))
    return bytes_[0] if len(bytes_) == 1 else shuffle(bytes_, range(16))


def write(emitter: Emitter, values: Sequence[Any], target: tuple[Any, Any], epilogue: Epilogue, dot: Dot) -> None:
    """Stores the results of up to 32 channels of one pixel.

    Args:
        emitter: Takes the statements.
        values: float32x4 each.
        target: Buffer, and offset of the first channel.
        epilogue: What is done with them.
        dot: The machine's kind.
    """
    from tvm import tirx

    buffer, offset = target
    if epilogue.quantized:
        for start in range(0, len(values), 4):
            part = values[start : start + 4]
            emitter.add(store(buffer, offset + 4 * start, quantized(part, epilogue, dot), 4 * len(part)))
        return
    for index, value in enumerate(values):
        if epilogue.low > float("-inf"):
            value = tirx.Max(value, broadcast(epilogue.low, 4, "float32"))
        if epilogue.high < float("inf"):
            value = tirx.Min(value, broadcast(epilogue.high, 4, "float32"))
        emitter.add(store(buffer, offset + 4 * index, value, 4))


def read_residual(buffer: Any, offset: Any, lanes: int) -> list[Any]:
    """The residual of `lanes` channels, in vectors of at most 16."""
    return [load(buffer, offset + start, min(16, lanes)) for start in range(0, lanes, 16)]
