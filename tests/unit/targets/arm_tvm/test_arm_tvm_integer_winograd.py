"""Winograd's algorithm in int16: to the bit what the direct convolution gives, and chosen where it is cheaper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arm_tvm_models import Array, needs_aarch64
from integer_models import Quantizing

from compiler.target import TargetPlan
from targets.arm_tvm import TARGET
from targets.arm_tvm.graph.quantized.rewrite import use_integers
from targets.arm_tvm.kernels.integer.kernel import Kernel, emit
from targets.arm_tvm.kernels.integer.minimal_filters import SIZES, filters
from targets.arm_tvm.kernels.integer.packed_weights import pack_weights
from targets.arm_tvm.kernels.integer.specs import ARM_DOTS, BLOCK, ConvSpec, Dot, Epilogue, Image
from targets.arm_tvm.kernels.integer.tiles import Tile, tile_choices, workload_digest
from targets.arm_tvm.kernels.integer.ways import Way, WinogradTile, choose_way, way_choices, way_of, winograd_choices
from targets.arm_tvm.options import Options

INT16 = np.iinfo(np.int16)
PI4 = Options("aarch64-linux-gnu", "cortex-a72", ("+neon",))


def spec_of(
    channels: int, outputs: int, size: tuple[int, int], pads: tuple[int, int] = (1, 1), batch: int = 1
) -> ConvSpec:
    """A 3×3 convolution of stride 1 with the same padding at both ends of an axis."""
    rows, columns = (length + 2 * pad - 2 for length, pad in zip(size, pads, strict=True))
    source, result = Image(batch, channels, *size), Image(batch, outputs, rows, columns)
    return ConvSpec(source, result, (3, 3), (1, 1), (1, 1), pads, -7, True, Epilogue(zero_point=3, residual_scale=0.5))


@pytest.mark.parametrize("m", SIZES)
def test_integer_transforms_give_every_product_of_a_signal_and_a_filter_once(m: int) -> None:
    own = filters(m)
    products = np.einsum("ti,ij,il->tjl", own.result, own.weights, own.source)
    wanted = np.fromfunction(lambda t, j, line: line == t + j, (m, 3, m + 2)) * own.odd
    np.testing.assert_array_equal(products, wanted << np.array(own.bits)[:, None, None])
    assert own.odd**2 * own.inverse % (1 << 32) == 1


@pytest.mark.parametrize("m", SIZES)
def test_transformed_activations_and_weights_fit_int16(m: int) -> None:
    for matrix in (filters(m).source, filters(m).weights):
        growth = np.abs(matrix).sum(axis=1).max() ** 2
        assert growth * 128 <= INT16.max


def blocked(tensor: Array) -> Array:
    """(N, C, H, W) as an image lies in memory."""
    batch, channels, height, width = tensor.shape
    grown = np.pad(tensor, ((0, 0), (0, -channels % BLOCK), (0, 0), (0, 0)))
    return np.ascontiguousarray(grown.reshape(batch, -1, BLOCK, height, width).transpose(0, 1, 3, 4, 2)).reshape(-1)


def computed(spec: ConvSpec, way: Way, arrays: tuple[Array, Array, Array], scale: float) -> Array:
    """What a kernel makes of activations, weights and a residual on this machine."""
    import tvm

    images, weights, residual = arrays
    factors = (np.full(spec.result.blocks * BLOCK, value, np.float32) for value in (scale, 0.25))
    arguments = [blocked(images), pack_weights(weights, spec, way, "generic"), *factors, blocked(residual)]
    function = emit(Kernel(spec, "generic", way)).with_attr("global_symbol", "main")
    # Winograd's is long: to optimize it takes seconds.
    target = {"kind": "llvm", "mcpu": "x86-64-v3", "opt-level": 0}
    built = tvm.compile(tvm.IRModule({"main": function}), target=target)
    result = tvm.runtime.empty((spec.result.elements,), "int8")
    built(*(tvm.runtime.tensor(argument) for argument in arguments), result)
    whole = result.numpy().reshape(spec.result.batch, -1, spec.result.height, spec.result.width, BLOCK)
    return np.moveaxis(whole, 4, 2).reshape(spec.result.batch, -1, *whole.shape[2:4])[:, : spec.result.channels]


@pytest.mark.needs_tvm
@pytest.mark.parametrize(
    ("spec", "way"),
    [
        (spec_of(20, 36, (11, 10), (1, 2), batch=2), WinogradTile(4, 2, 3)),
        (spec_of(5, 3, (7, 13), (0, 1)), WinogradTile(2, 2, 5)),
    ],
)
def test_results_are_those_of_the_direct_convolution(spec: ConvSpec, way: WinogradTile) -> None:
    rng = np.random.default_rng(1)
    shapes = [(spec.source.batch, spec.source.channels, spec.source.height, spec.source.width)]
    shapes += [(spec.result.channels, spec.source.channels, 3, 3)]
    shapes += [(spec.result.batch, spec.result.channels, spec.result.height, spec.result.width)]
    images, weights, residual = (rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes)
    arrays = images, weights, residual
    results = [computed(spec, each, arrays, 2.0**-9) for each in (way, tile_choices(spec, "generic")[0])]
    np.testing.assert_array_equal(*results)
    assert len(np.unique(results[0])) > 40


@pytest.mark.needs_tvm
@pytest.mark.parametrize("m", SIZES)
def test_the_greatest_sums_of_the_most_channels_are_exact(m: int) -> None:
    channels = next(
        count
        for count in range(512, 0, -BLOCK)
        if any(way.m == m for way in winograd_choices(spec_of(count, 16, (4, 4)), "widen"))
    )
    spec = replace(spec_of(channels, 3, (4, 4)), fill=-128)
    images, residual = np.full((1, channels, 4, 4), -128, np.int8), np.zeros((1, 3, 4, 4), np.int8)
    # Filter by filter: the greatest sum, the least, and every product of the greatest magnitude, which cancel.
    weights = np.full((3, channels, 3, 3), -128, np.int8)
    weights[1], weights[2, ::2] = 127, 127
    result = computed(spec, WinogradTile(m, 9, 2), (images, weights, residual), 2.0**-18)
    sums = (images[0, 0, 0, 0] * weights.astype(np.int64)).sum(axis=(1, 2, 3))
    wanted = np.clip(np.rint(sums * 2.0**-18 + 0.25) + 3, -128, 127)
    np.testing.assert_array_equal(result, np.broadcast_to(wanted[None, :, None, None], result.shape))


def test_it_is_chosen_where_a_core_has_no_dot_product_and_only_there() -> None:
    spec = spec_of(64, 64, (17, 17))
    ways: dict[Dot, Way] = {dot: choose_way(spec, dot, {}) for dot in (*ARM_DOTS, "generic", "avx512_vnni")}
    assert [dot for dot, way in ways.items() if isinstance(way, WinogradTile)] == ["widen"]


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": (2, 2), "result": Image(1, 64, 9, 9)},
        {"dilations": (2, 2), "pads": (2, 2)},
        {"kernel": (5, 5), "pads": (2, 2)},
        {"kernel": (3, 1), "pads": (1, 0)},
        {"depthwise": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_it_is_for_windows_of_3_by_3_that_move_by_one_alone(changed: dict[str, object]) -> None:
    assert winograd_choices(spec_of(64, 64, (17, 17)), "widen")
    assert not winograd_choices(replace(spec_of(64, 64, (17, 17)), **changed), "widen")  # type: ignore[arg-type]


def test_transformed_weights_that_would_not_stay_in_the_cache_have_smaller_tiles_or_none() -> None:
    specs = {channels: spec_of(channels, 16, (8, 8)) for channels in (128, 256, 512)}
    sizes = {channels: {way.m for way in winograd_choices(spec, "widen")} for channels, spec in specs.items()}
    assert sizes == {128: {2, 4}, 256: {2}, 512: set()}


def test_a_map_of_few_pixels_is_convolved_directly() -> None:
    assert isinstance(choose_way(spec_of(256, 256, (3, 3)), "widen", {}), Tile)


def test_a_schedule_takes_the_place_of_the_predicted_way() -> None:
    spec = spec_of(64, 64, (17, 17))
    for way in way_choices(spec, "widen"):
        assert way_of(way.to_dict()) == way
        assert choose_way(spec, "widen", {workload_digest(spec, "widen"): way.to_dict()}) == way


def test_other_sizes_of_a_range_read_the_weights_as_they_are_packed() -> None:
    spec, other = spec_of(64, 64, (17, 17)), spec_of(64, 64, (3, 3))
    for way in way_choices(spec, "widen"):
        alike = way_choices(other, "widen", like=way)
        weights = np.random.default_rng(2).integers(-127, 128, (64, 64, 3, 3)).astype(np.int8)
        packed = pack_weights(weights, spec, way, "widen")
        assert alike
        assert all(np.array_equal(pack_weights(weights, other, each, "widen"), packed) for each in alike)


@needs_aarch64
def test_under_the_emulator_results_are_those_of_the_direct_kernel(
    tmp_path: Path, cache_dir: Path, pi5: object
) -> None:
    net = Quantizing(unsigned=True)
    data = net.steps("image", 0.03)
    weights, bias = net.weights("w", (16, 24, 3, 3), least=-128), net.bias("b", 16)
    whole, positive = (net.add("Conv", [data, weights, bias], name, pads=[1] * 4) for name in ("whole", "positive"))
    net.add("Relu", [positive], "cut")
    outputs = {net.steps(name, 0.1): (1, 16, 8, 8) for name in (whole, "cut")}
    model = net.model({"image": (1, 24, 8, 8)}, outputs)
    # Of two convolutions of the same weights that differ in an activation one is computed directly.
    kernels = [kernel for kernel in use_integers(model, "widen").kernels.values() if kernel.way]
    specs = [kernel.spec for kernel in kernels if isinstance(kernel.spec, ConvSpec)]
    assert [type(kernel.way) for kernel in kernels] == [WinogradTile] * 2 and len(set(specs)) == 2
    schedule = {workload_digest(specs[1], "widen"): tile_choices(specs[1], "widen")[0].to_dict()}
    plan = TargetPlan(precision="int8", options=PI4, cache_dir=cache_dir, schedule=schedule)
    image = {"image": np.random.default_rng(3).standard_normal((1, 24, 8, 8)).astype(np.float32) * 3}
    results = TARGET.load(TARGET.build(model, plan, pi5, workdir=tmp_path)).run(image)
    winograd, direct = (results[name] for name in outputs)
    np.testing.assert_array_equal(np.maximum(winograd, 0), direct)
    assert len(np.unique(winograd)) > 100
