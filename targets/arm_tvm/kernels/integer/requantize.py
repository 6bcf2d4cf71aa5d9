"""Requantization of accumulators to results, in registers.

Per four results: scvtf, fmul, fadd (+ sxtl, scvtf, fmla for a residual), fcvtns, and half of two sqxtn. fcvtns rounds
halves to even and sqxtn saturates, as ONNX's QuantizeLinear does. An activation is a clamp of the int8 result, sixteen
at a time: rounding is monotone, so it may be done after it. Other activations are computed of the floats before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast, cast, intrinsic, load, shuffle, store
from targets.arm_tvm.kernels.expressions import evaluate
from targets.arm_tvm.kernels.integer.specs import BLOCK, Dot, Epilogue
from targets.arm_tvm.kernels.integer.vectors import vectors_of


def scaled(
    accumulators: Sequence[Any], scales: Sequence[Any], biases: Sequence[Any], residual: Any, epilogue: Epilogue
) -> list[Any]:
    """acc · scale + bias (+ residual · its scale), in vectors of as many lanes as the machine has.

    Args:
        accumulators: int32 vectors.
        scales: float32 vectors.
        biases: float32 vectors.
        residual: int8 vector of all channels, or None.
        epilogue: For the residual's scale.
    """
    lanes = int(accumulators[0].ty.dtype.lanes)
    floats = f"float32x{lanes}"
    values = [cast(floats, acc) * scale + bias for acc, scale, bias in zip(accumulators, scales, biases, strict=True)]
    if residual is None or epilogue.residual_scale is None:
        return values
    factor, added = broadcast(epilogue.residual_scale, lanes, "float32"), parts(residual, lanes)
    return [value + cast(floats, part) * factor for value, part in zip(values, added, strict=True)]


def parts(vector: Any, lanes: int) -> list[Any]:
    """int8xN → the int32 vectors of `lanes` in it."""
    if lanes == 4:
        return quarters(vector)
    size = int(vector.ty.dtype.lanes)
    pieces = [vector] if size == lanes else [shuffle([vector], range(at, at + lanes)) for at in range(0, size, lanes)]
    return [cast(f"int32x{lanes}", piece) for piece in pieces]


def split_sums(vector: Any, lanes: int) -> list[Any]:
    """int32x16 → vectors of `lanes`."""
    return [vector] if lanes == BLOCK else [shuffle([vector], range(at, at + lanes)) for at in range(0, BLOCK, lanes)]


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
    """float32 vectors of up to 16 results → one int8 vector."""
    if vectors_of(dot).moved:
        return _converted(values, epilogue)
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


def _converted(values: Sequence[Any], epilogue: Epilogue) -> Any:
    """By vcvtps2dq, which rounds halves to even too; limits come first, because it saturates nothing."""
    from tvm import tirx

    lanes, zero = int(values[0].ty.dtype.lanes), epilogue.zero_point
    # Limits that are whole numbers: a value is cut to them before it is rounded as it would be after.
    low, high = (broadcast(float(limit - zero), lanes, "float32") for limit in (epilogue.low, epilogue.high))
    limited = [tirx.Min(tirx.Max(value, low), high) for value in values]
    whole = [intrinsic(f"int32x{lanes}", "llvm.lrint", value) for value in limited]
    joined = whole[0] if len(whole) == 1 else shuffle(whole, range(lanes * len(whole)))
    size = lanes * len(whole)
    narrow = cast(f"int8x{size}", joined)
    return narrow + broadcast(zero, size, "int8") if zero else narrow


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
        values: float32 vectors.
        target: Buffer, and offset of the first channel.
        epilogue: What is done with them.
        dot: The machine's kind.
    """
    from tvm import tirx

    buffer, offset = target
    vectors, lanes = vectors_of(dot), int(values[0].ty.dtype.lanes)
    values = [_activated(emitter, value, epilogue) for value in values]
    if epilogue.quantized:
        for start in range(0, len(values), BLOCK // lanes):
            part = values[start : start + BLOCK // lanes]
            value = vectors.unsigned(quantized(part, epilogue, dot))
            emitter.add(store(buffer, offset + lanes * start, value, lanes * len(part)))
        return
    for index, value in enumerate(values):
        if epilogue.low > float("-inf"):
            value = tirx.Max(value, broadcast(epilogue.low, lanes, "float32"))
        if epilogue.high < float("inf"):
            value = tirx.Min(value, broadcast(epilogue.high, lanes, "float32"))
        emitter.add(store(buffer, offset + lanes * index, value, lanes))


def _activated(emitter: Emitter, value: Any, epilogue: Epilogue) -> Any:
    """The activations of a vector, in steps of the result."""
    lanes = int(value.ty.dtype.lanes)
    for text in epilogue.activations:
        value = evaluate(text, value, emitter=emitter, lanes=lanes, dtype="float32")
    return value * broadcast(1.0 / epilogue.step, lanes, "float32") if epilogue.step != 1.0 else value


def read_residual(buffer: Any, offset: Any, channels: int, dot: Dot) -> Any:
    """The residual of up to 16 channels, as int8."""
    return vectors_of(dot).signed(load(buffer, offset, channels))
