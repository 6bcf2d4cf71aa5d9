"""Random integer convolutions against exact integers: any register tile that is offered, any stride, pad, dilation."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.fleet.detect import host_isa
from targets.arm_tvm.kernels.integer.conv import dot_for
from targets.arm_tvm.kernels.integer.kernel import Kernel, emit
from targets.arm_tvm.kernels.integer.packed_weights import pack_depthwise, pack_weights, start_of
from targets.arm_tvm.kernels.integer.runs import as_multiplied
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, Epilogue, Image
from targets.arm_tvm.kernels.integer.tiles import split, tile_choices
from targets.arm_tvm.kernels.integer.vectors import vectors_of
from targets.arm_tvm.run.amx import request_tiles

pytestmark = pytest.mark.needs_tvm
Array = np.ndarray
CORES: dict[Dot, tuple[str, set[str]]] = {
    "generic": ("x86-64-v3", {"avx2", "fma"}),
    "avx_vnni": ("gracemont", {"avx2", "fma", "avx_vnni"}),
    "amx_int8": ("sapphirerapids", {"avx512_fp16", "avx512_vnni", "amx_tile", "amx_int8"}),
    "avx512_vnni": ("icelake-server", {"avx512vl", "avx512vbmi", "avx512_vnni"}),
}
"""How products are made → a core that has it, by LLVM's name, and flags that this machine needs to run its code."""
SCALE = np.float32(2.0**-9)
"""A power of two: the product with a sum is exact, and so is the expected result."""


@st.composite
def convolutions(draw: st.DrawFn) -> ConvSpec:
    kernel, strides, dilations, pads = (
        draw(st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, 4), (1, 2), (1, 2), (0, 2))
    )
    reach = [(taps - 1) * distance + 1 for taps, distance in zip(kernel, dilations, strict=True)]
    height, width = (draw(st.integers(size, size + 9)) for size in reach)
    depthwise = draw(st.booleans())
    channels = draw(st.integers(1, 36))
    filters = channels if depthwise else draw(st.integers(1, 36))
    sizes = [
        (size + 2 * pad - span) // step + 1
        for size, pad, span, step in zip((height, width), pads, reach, strides, strict=True)
    ]
    batch = draw(st.integers(1, 2))
    residual = draw(st.sampled_from([None, 0.5]))
    epilogue = Epilogue(True, draw(st.integers(-20, 20)), draw(st.sampled_from([-128.0, 0.0])), 127.0, residual)
    source, result = Image(batch, channels, height, width), Image(batch, filters, *sizes)
    fill, wide = draw(st.integers(-128, 127)), draw(st.booleans())
    return ConvSpec(source, result, kernel, strides, dilations, pads, fill, wide, epilogue, depthwise)


def blocked(tensor: Array) -> Array:
    batch, channels, height, width = tensor.shape
    grown = np.pad(tensor, ((0, 0), (0, -channels % BLOCK), (0, 0), (0, 0)))
    return np.ascontiguousarray(grown.reshape(batch, -1, BLOCK, height, width).transpose(0, 1, 3, 4, 2)).reshape(-1)


def unblocked(flat: Array, image: Image) -> Array:
    parts = flat.reshape(image.batch, image.blocks, image.height, image.width, BLOCK)
    whole = parts.transpose(0, 1, 4, 2, 3).reshape(image.batch, -1, image.height, image.width)
    return whole[:, : image.channels]


def sums(spec: ConvSpec, data: Array, weights: Array) -> Array:
    """Exact accumulators, int64."""
    result, around = spec.result, [(pad, pad + reach) for pad, reach in zip(spec.pads, (9, 9), strict=True)]
    padded = np.pad(data.astype(np.int64), ((0, 0), (0, 0), *around), constant_values=spec.fill)
    total = np.zeros((result.batch, result.channels, result.height, result.width), dtype=np.int64)
    for y, x in np.ndindex(*spec.kernel):
        top, left = y * spec.dilations[0], x * spec.dilations[1]
        rows = slice(top, top + (result.height - 1) * spec.strides[0] + 1, spec.strides[0])
        columns = slice(left, left + (result.width - 1) * spec.strides[1] + 1, spec.strides[1])
        seen, tap = padded[:, :, rows, columns], weights[:, :, y, x].astype(np.int64)
        total += seen * tap[:, 0, None, None] if spec.depthwise else np.einsum("nihw,oi->nohw", seen, tap)
    return total


def computed(kernel: Kernel, arguments: list[Array], elements: int) -> Array:
    import tvm

    function = emit(kernel).with_attr("global_symbol", "main")
    built = tvm.compile(tvm.IRModule({"main": function}), target={"kind": "llvm", "mcpu": CORES[kernel.dot][0]})
    result = tvm.runtime.empty((elements,), vectors_of(kernel.dot).stored)
    built(*(tvm.runtime.tensor(argument) for argument in arguments), result)
    return result.numpy()


def stored(tensor: Array, dot: Dot) -> Array:
    """Activations as a kernel has them in memory."""
    return (tensor.astype(np.int16) + 128).astype(np.uint8) if vectors_of(dot).moved else tensor


@pytest.mark.parametrize("dot", CORES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=convolutions(), seed=st.integers(0, 2**31), data=st.data())
def test_an_integer_convolution_is_exact(dot: Dot, spec: ConvSpec, seed: int, data: st.DataObject) -> None:
    if missing := CORES[dot][1] - host_isa():
        pytest.skip(f"this machine's processor lacks {', '.join(sorted(missing))}")
    if dot == "amx_int8":
        request_tiles()
    dot = dot_for(spec, dot)
    rng = np.random.default_rng(seed)
    source, result = spec.source, spec.result
    images = rng.integers(-128, 128, (source.batch, source.channels, source.height, source.width)).astype(np.int8)
    inputs = 1 if spec.depthwise else source.channels
    least = -128 if spec.wide else -127
    weights = rng.integers(least, 128, (result.channels, inputs, *spec.kernel)).astype(np.int8)
    bias = np.zeros(result.blocks * BLOCK, dtype=np.float32)
    bias[: result.channels] = rng.integers(-50, 50, result.channels)
    residual = rng.integers(-128, 128, (result.batch, result.channels, result.height, result.width)).astype(np.int8)
    if spec.depthwise:
        kernel, packed = Kernel(spec, dot), pack_depthwise(weights, dot)
    else:
        tile = data.draw(st.sampled_from(tile_choices(spec, dot)))
        kernel, packed = Kernel(spec, dot, tile), pack_weights(weights, spec, tile, dot)
    scales = np.full(result.blocks * BLOCK, SCALE)
    added = spec.epilogue.residual_scale
    arguments = [stored(blocked(images), dot), packed, scales, bias]
    arguments += [start_of(weights)] if vectors_of(dot).moved else []
    arguments += [stored(blocked(residual), dot)] if added is not None else []
    found = unblocked(computed(kernel, arguments, result.elements), result)
    found = found.astype(np.int16) - (128 if vectors_of(dot).moved else 0)

    exact = sums(spec, images, weights) * float(SCALE) + bias[: result.channels, None, None]
    exact = exact + residual * (added or 0.0)
    want = np.clip(np.rint(exact) + spec.epilogue.zero_point, max(spec.epilogue.low, -128), 127)
    np.testing.assert_array_equal(found, want)


def test_channels_that_amx_takes_pixel_by_pixel_are_filled_up_to_lines() -> None:
    if missing := CORES["amx_int8"][1] - host_isa():
        pytest.skip(f"this machine's processor lacks {', '.join(sorted(missing))}")
    request_tiles()
    source, result = Image(2, 236, 3, 7), Image(2, 141, 3, 4)
    spec = ConvSpec(source, result, (1, 1), (1, 2), (1, 1), (0, 0), 3, True, Epilogue(low=-128))
    multiplied = as_multiplied(spec, "amx_int8")
    assert (multiplied.source.layout, multiplied.source.channels) == ("rows", 256)
    assert as_multiplied(spec, "avx512_vnni") == spec
    rng = np.random.default_rng(7)
    images = rng.integers(-128, 128, (2, 236, 3, 7)).astype(np.int8)
    weights = rng.integers(-128, 128, (141, 236, 1, 1)).astype(np.int8)
    bias = np.zeros(result.blocks * BLOCK, dtype=np.float32)
    tile = tile_choices(spec, "amx_int8")[0]
    packed = pack_weights(weights, spec, tile, "amx_int8")
    scales = np.full(result.blocks * BLOCK, SCALE / 16)
    arguments = [stored(blocked(images), "amx_int8"), packed, scales, bias, start_of(weights)]
    found = unblocked(computed(Kernel(spec, "amx_int8", tile), arguments, result.elements), result).astype(np.int16)
    want = np.clip(np.rint(sums(spec, images, weights) * float(SCALE / 16)), -128, 127)
    np.testing.assert_array_equal(found - 128, want)


@given(size=st.integers(1, 200), most=st.integers(1, 16))
def test_a_split_covers_a_size_with_at_most_two_widths(size: int, most: int) -> None:
    parts = split(size, most)
    covered = [
        first + index * width + at for first, count, width in parts for index in range(count) for at in range(width)
    ]
    assert covered == list(range(size))
    assert len(parts) <= 2
    assert max(width for _, _, width in parts) <= most
