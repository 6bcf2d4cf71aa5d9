"""The probe: inputs and reference outputs that show whether a pass changed what the model computes.

Models run in ONNX Runtime with its optimizations off, on weights that are shared and not copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.errors import UnsupportedModel
from compiler.model.numerics import TOLERANCES, Array, Arrays, ErrorStats, Tolerance, compare_all, is_floating
from compiler.model.reference import Unoptimized
from compiler.passes.quantized import count_quantized_steps, is_quantized
from compiler.passes.values import graphs_of

# fixed: what a pass changes must be the same figure in every run and on every machine
SEED = 20261123
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators of ONNX that draw random numbers: never folded, never merged, and outputs behind them are not compared."""

_BATCH = 2
"""Size given to a symbolic first dimension: more than one, or a frozen batch would not be seen."""
_DRAWS = 3
"""How often inputs are moved to learn a model's own noise; the worst counts."""
_MARGIN_DB = 3.0
"""The noise is measured on a few draws: half or twice of it is the same noise."""
_FLOAT_FLOOR_DB = 20.0
"""An error of a tenth: an output in floats that moves by more than that on its own proves nothing."""
_STEPS = 255
"""Steps of a quantizer of 8 bits over its range."""
_OTHER_SIZES = (2, 8, 32, 64, 224)
"""Sizes tried, in this order, for other symbolic dimensions, until the model runs."""


@dataclass(frozen=True)
class Probe:
    """Inputs, and the outputs of the model for them before the first pass.

    Args:
        inputs: One array per graph input.
        expected: Output name → array; None where the model could not be run.
        why: Why `expected` is None, empty otherwise.
        is_refused: Whether that is because ONNX Runtime refused the model or the inputs.
    """

    inputs: Arrays
    expected: Arrays | None
    why: str = ""
    is_refused: bool = False

    def worst(self, model: ir.Model) -> ErrorStats:
        """The worst of the outputs' differences from the expected ones.

        Raises:
            UnsupportedModel: ONNX Runtime refuses the model, or there is nothing to compare with.
        """
        return worst_of(compare_all(self._expected(), self.run(model)))

    def run(self, model: ir.Model) -> Arrays:
        """The model's outputs on the probe's inputs; raises UnsupportedModel as `worst` does."""
        self._expected()
        return run_unoptimized(model, self.inputs)

    def _expected(self) -> Arrays:
        if self.expected is None:
            raise UnsupportedModel(self.why)
        return self.expected


def worst_of(stats: Mapping[str, ErrorStats]) -> ErrorStats:
    """The output that differs most."""
    return min(stats.values(), key=lambda error: (error.sqnr_db, -error.worst_abs))


def tolerance_of(model: ir.Model) -> Tolerance:
    """The level that two equivalent forms of a model agree to: that of the coarsest arithmetic in it."""
    if is_quantized(model):
        return TOLERANCES["int8"]
    dtypes = {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    if ir.DataType.BFLOAT16 in dtypes:
        return TOLERANCES["bf16"]
    return TOLERANCES["fp16" if ir.DataType.FLOAT16 in dtypes else "fp32"]


def own_noise_db(model: ir.Model, inputs: Arrays, expected: Arrays) -> dict[str, float]:
    """How far outputs move when the inputs move by what the model cannot tell apart: nothing can come nearer to them.

    A float moves by half its last place; the inputs of a model that quantizes at each step of a sequence by half a step
    of 8 bits. An output behind a Sigmoid that is nearly zero on these inputs, for example, has few exact places left:
    the reference rounds it to the last place of 1.

    Args:
        model: The model.
        inputs: Of the model.
        expected: Its outputs for them.

    Returns:
        Floating-point output → the lowest signal-to-noise ratio of a few draws, in dB; inf where none moves it.
    """
    random, floats = np.random.default_rng(SEED), [name for name, array in inputs.items() if is_floating(array)]
    outputs = {name: array for name, array in expected.items() if is_floating(array)}
    ratios_db = dict.fromkeys(outputs, math.inf)
    moves = _by_half_a_step if count_quantized_steps(model) else _by_half_a_place
    for _ in range(_DRAWS if floats and outputs else 0):
        moved = {**inputs, **{name: moves(inputs[name], random) for name in floats}}
        for name, stats in compare_all(outputs, run_unoptimized(model, moved)).items():
            ratios_db[name] = min(ratios_db[name], stats.sqnr_db)
    return ratios_db


def least_db(tolerance: Tolerance, noise_db: float, *, is_quantized: bool) -> float:
    """What an output must hold where the model's own noise allows no more.

    Args:
        tolerance: What it must hold otherwise.
        noise_db: The model's own noise, of `own_noise_db`.
        is_quantized: Whether the model quantizes at each step of a sequence; no other is ever held to less than 20 dB.
    """
    if math.isinf(tolerance.sqnr_db_min):
        return tolerance.sqnr_db_min
    floor_db = TOLERANCES["quantized"].sqnr_db_min if is_quantized else _FLOAT_FLOOR_DB
    return min(tolerance.sqnr_db_min, max(floor_db, noise_db - _MARGIN_DB))


def _by_half_a_step(array: Array, random: np.random.Generator) -> Array:
    values = array.astype(np.float64)
    step = (max(values.max(initial=0), 0) - min(values.min(initial=0), 0)) / _STEPS
    moved: Array = (values + step * (random.random(values.shape) - 0.5)).astype(array.dtype)
    return moved


def _by_half_a_place(array: Array, random: np.random.Generator) -> Array:
    """Each number stays, or becomes one of its neighbours."""
    if array.dtype.kind != "f":  # NumPy knows no neighbours of bfloat16 and narrower ones
        return array
    towards = random.choice(np.array([-np.inf, np.inf]), array.shape).astype(array.dtype)
    return np.where(random.random(array.shape) < 0.5, array, np.nextafter(array, towards))


def make_probe(model: ir.Model, inputs: Arrays | None = None) -> Probe:
    """Runs the model once on `inputs`, or, without them, on seeded random inputs (a symbolic batch is 2)."""
    if any(node.op_type in RANDOM_OPERATORS for graph in graphs_of(model) for node in graph):
        return Probe(inputs or {}, None, "the model draws random numbers")
    candidates = iter([inputs]) if inputs is not None else _candidates(model)
    why, is_refused = "the model has no output", False
    for candidate in candidates if model.graph.outputs else ():
        try:
            return Probe(candidate, run_unoptimized(model, candidate))
        except UnsupportedModel as error:
            why, is_refused = error.what, True
    return Probe(inputs or {}, None, why, is_refused)


def run_unoptimized(model: ir.Model, inputs: Arrays) -> dict[str, Array]:
    """Outputs by name from ONNX Runtime with optimizations off, on one thread; the weights are shared, not copied.

    Raises:
        UnsupportedModel: ONNX Runtime refuses the model or these inputs.
    """
    return Unoptimized(model).run(inputs)


def _candidates(model: ir.Model) -> Iterator[Mapping[str, Array]]:
    taken = [value for value in model.graph.inputs if value.const_value is None]
    if any(not isinstance(value.type, ir.TensorType) or value.shape is None for value in taken):
        return
    symbolic = any(not isinstance(size, int) for value in taken for size in (value.shape or ()))
    for other in _OTHER_SIZES if symbolic else _OTHER_SIZES[:1]:
        random = np.random.default_rng(SEED)
        yield {str(value.name): _random(value, other, random) for value in taken}


def _random(value: ir.Value, other: int, random: np.random.Generator) -> Array:
    shape = [
        size if isinstance(size, int) else (_BATCH if axis == 0 else other)
        for axis, size in enumerate(value.shape or ())
    ]
    dtype = value.dtype or ir.DataType.FLOAT
    if dtype == ir.DataType.STRING:
        return np.full(shape, "a", dtype=object)
    if dtype == ir.DataType.BOOL:
        return random.integers(0, 2, shape).astype(bool)
    if dtype.is_floating_point():
        return random.standard_normal(shape).astype(dtype.numpy())
    return random.integers(0, 2, shape).astype(dtype.numpy())
