"""Windows of short pixels, gathered into runs without gaps: where they are, and that nothing of the result changes."""

from __future__ import annotations

import numpy as np
import pytest

from targets.arm_tvm.kernels.integer.conv import chunks
from targets.arm_tvm.kernels.integer.gathered import gathered
from targets.arm_tvm.kernels.integer.kernel import Kernel, emit
from targets.arm_tvm.kernels.integer.packed_weights import pack_weights
from targets.arm_tvm.kernels.integer.specs import BLOCK, ConvSpec, Dot, Epilogue, Image
from targets.arm_tvm.kernels.integer.tiles import tile_choices


def first_layer(kernel: int, channels: int, filters: int, *, stride: int = 1, dilation: int = 1) -> ConvSpec:
    """A convolution of unblocked pixels; dilated along columns of the image alone."""
    source = Image(2, channels, 15, 17, "pixels")
    rows, columns = (15 - dilation * (kernel - 1) - 1) // stride + 1, (17 - kernel) // stride + 1
    result, steps = Image(2, filters, rows, columns), (stride, stride)
    return ConvSpec(source, result, (kernel, kernel), steps, (dilation, 1), (0, 0), 0, True, Epilogue(zero_point=2))


@pytest.mark.parametrize(
    ("kernel", "channels", "dot", "vectors"),
    [
        (7, 3, "widen", 10),
        (3, 3, "widen", 2),
        (5, 1, "generic", 2),
        (4, 4, "widen", 4),  # four rows of 16 bytes: there are no gaps
        (7, 3, "sdot", 7 * 2),  # of whose second vector two words are multiplied
        (7, 3, "smmla", 7 * 2),
    ],
)
def test_windows_are_gathered_where_whole_vectors_are_multiplied_and_rows_leave_gaps(
    kernel: int, channels: int, dot: Dot, vectors: int
) -> None:
    spec = first_layer(kernel, channels, 32)
    own = gathered(spec, dot)
    assert own.kernel[0] * len(chunks(own, dot)) == vectors
    assert gathered(own, dot) == own


def test_blocked_images_are_not_gathered() -> None:
    image = Image(1, 32, 9, 9)
    spec = ConvSpec(image, image, (3, 3), (1, 1), (1, 1), (1, 1), 0, False, Epilogue())
    assert gathered(spec, "widen") == spec


@pytest.mark.needs_tvm
@pytest.mark.parametrize(
    "spec",
    [
        first_layer(7, 3, 20, stride=2),
        first_layer(3, 3, 16, dilation=2),
        first_layer(5, 1, 33),
        first_layer(4, 4, 16, stride=2),
    ],
)
def test_a_convolution_of_gathered_windows_is_exact(spec: ConvSpec) -> None:
    import tvm

    rng, (batch, channels, source) = np.random.default_rng(4), (2, spec.source.channels, spec.source)
    images = rng.integers(-128, 128, (batch, source.height, source.width, channels)).astype(np.int8)
    weights = rng.integers(-128, 128, (spec.result.channels, channels, *spec.kernel)).astype(np.int8)
    # What lies behind an image may be read and must not count.
    slack = np.full((batch, source.batch_stride - images[0].size), 111, np.int8)
    flat = np.concatenate([images.reshape(batch, -1), slack], axis=1).reshape(-1)
    tile = tile_choices(spec, "generic")[0]
    factors = (np.full(spec.result.blocks * BLOCK, value, np.float32) for value in (2.0**-9, 0.25))
    function = emit(Kernel(spec, "generic", tile)).with_attr("global_symbol", "main")
    target = {"kind": "llvm", "mcpu": "x86-64-v3", "opt-level": 0}
    built, result = tvm.compile(tvm.IRModule({"main": function}), target=target), spec.result
    made = tvm.runtime.empty((result.elements,), "int8")
    arguments = [flat, pack_weights(weights, spec, tile, "generic"), *factors]
    built(*(tvm.runtime.tensor(argument) for argument in arguments), made)
    parts = np.moveaxis(made.numpy().reshape(batch, result.blocks, result.height, result.width, BLOCK), 1, 3)
    pixels = parts.reshape(batch, result.height, result.width, -1)[..., : result.channels]
    reach = [(size - 1) * step + 1 for size, step in zip(spec.kernel, spec.dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(images.astype(np.int64), reach, axis=(1, 2))
    windows = windows[:, :: spec.strides[0], :: spec.strides[1], :, :: spec.dilations[0], :: spec.dilations[1]]
    sums = np.einsum("nhwcyx,ocyx->nhwo", windows, weights.astype(np.int64))
    np.testing.assert_array_equal(pixels, np.clip(np.rint(sums * 2.0**-9 + 0.25) + 2, -128, 127))
