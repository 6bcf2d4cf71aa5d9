"""Per-channel factors moved between the constants before a value and the weights that read it.

    source(x)_i  →  homogeneous steps  →  Σ_i w_oi · v_i          v = f(source(x)),  f(s·v) = s·f(v) for s > 0
    source(x)_i / s_i  →  the same     →  Σ_i (w_oi · s_i) · v_i / s_i

In real numbers the model computes the same for any factors s > 0. In few bits it does not, since the ranges of weights
and of v change. A site is a value v with a source that takes 1/s into its constants, and only readers that
take s into their weights:

source     Conv; Gemm, or MatMul, with constant weight and bias; LayerNormalization over the last dimension
steps      Relu, LeakyRelu; behind a Conv pools; behind others Add of a constant vector, which is divided too
readers    of channels in dimension 1 Conv, of those in the last Gemm or MatMul, with v as first input

On request a value with readers but without such a source gets a Mul by 1/s before those readers. That is one operator
more, and needed where LayerNormalization feeds a residual sum too, or where Gelu precedes the product.

There is no other site where a value in between has another reader or is an output of the graph, where a step is not
positively homogeneous (Clip, Gelu, Sigmoid), or where a constant has other readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.constants import give_constant
from compiler.model.graph import add_constant
from compiler.passes.values import Names, constant_of, is_only_used_by

Floats = NDArray[np.float32]

_STEPS = frozenset({"Relu", "LeakyRelu"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass(frozen=True)
class Divided:
    """A constant that is divided by the factors along one dimension."""

    node: ir.Node
    index: int
    axis: int

    @property
    def array(self) -> Floats:
        """The constant (…, C, …)."""
        return _array(self.node, self.index)


@dataclass(frozen=True)
class Reader:
    """A weight that is multiplied by the factors.

    Args:
        node: Whose second input it is.
        view: The shape it is looked at in: groups, outputs, channels of a group, and the rest.
    """

    node: ir.Node
    view: tuple[int, int, int, int]

    @property
    def array(self) -> Floats:
        """The weight in that shape."""
        return _array(self.node, 1).reshape(self.view)


@dataclass(frozen=True)
class Site:
    """A value whose channels may be scaled.

    Args:
        value: What the readers read.
        axis: The dimension of its channels.
        divided: Constants of the source and of steps, the source's first one first; none where a Mul is put in.
        readers: Weights that take the factors.
    """

    value: ir.Value
    axis: int
    divided: tuple[Divided, ...]
    readers: tuple[Reader, ...]


def find_sites(model: ir.Model, *, inserts: bool = False) -> tuple[Site, ...]:
    """The sites of the main graph in topological order; with `inserts` also those that need a new Mul."""
    values = [value for node in model.graph for value in node.outputs[:1]]
    sites = (_site(value) or (_bare_site(value) if inserts else None) for value in values)
    return tuple(site for site in sites if site is not None)


def source_ranges(site: Site) -> Floats:
    """Largest absolute weight of the source for each channel (C,)."""
    first = site.divided[0]
    weight = np.moveaxis(np.abs(first.array), first.axis, 0)
    return np.asarray(weight.reshape(len(weight), -1).max(axis=1))


def reader_ranges(site: Site) -> Floats:
    """Largest absolute weight that any reader multiplies each channel by (C,)."""
    return np.asarray(np.max([np.abs(reader.array).max(axis=(1, 3)).reshape(-1) for reader in site.readers], axis=0))


def apply_factors(model: ir.Model, site: Site, factors: Floats, names: Names) -> None:
    """Divides the source's constants by the factors (C,) > 0 and multiplies the readers'; changes the model in place.

    Args:
        model: The one the site is of.
        site: Where.
        factors: One per channel. Results change by rounding errors only.
        names: Of the model.
    """
    for constant in site.divided:
        shape = [1] * constant.array.ndim
        shape[constant.axis] = -1
        give_constant(model, constant.node, constant.index, constant.array / factors.reshape(shape), names)
    for reader in site.readers:
        groups, _, channels, _ = reader.view
        scaled = reader.array * factors.reshape(groups, 1, channels, 1)
        give_constant(model, reader.node, 1, scaled.reshape(_array(reader.node, 1).shape), names)
    if not site.divided:
        _insert_mul(model, site, np.asarray(1.0 / factors, np.float32), names)


def _insert_mul(model: ir.Model, site: Site, factors: Floats, names: Names) -> None:
    value = site.value
    name = names.fresh(f"{value.name}_smoothed")
    by = add_constant(model.graph, names.fresh(f"{name}_by"), factors)
    node = ir.node("Mul", [value, by], name=names.fresh(f"Mul:{name}"))
    made = node.outputs[0]
    made.name, made.type, made.shape = name, value.type, value.shape
    source = value.producer()
    if source is not None:
        model.graph.insert_after(source, node)
    for reader in site.readers:
        reader.node.replace_input_with(0, made)


def _site(value: ir.Value) -> Site | None:
    readers = [_reader(node, index) for node, index in value.uses()]
    scaled = [reader for reader in readers if reader is not None]
    if not scaled or len(scaled) < len(readers) or value.is_graph_output():
        return None
    is_picture = scaled[0].node.op_type == "Conv"
    channels = scaled[0].view[0] * scaled[0].view[2]
    divided = _divided(value, is_picture, channels)
    if not divided or any((reader.node.op_type == "Conv") != is_picture for reader in scaled):
        return None
    return Site(value, 1 if is_picture else -1, divided, tuple(scaled))


def _bare_site(value: ir.Value) -> Site | None:
    """A site without a source: the products that read a value."""
    readers = [reader for reader in (_reader(node, index) for node, index in value.uses()) if reader is not None]
    products = tuple(product for product in readers if product.node.op_type != "Conv")
    if (
        not products
        or value.dtype != ir.DataType.FLOAT
        or any(product.view[2] != products[0].view[2] for product in products)
    ):
        return None
    return Site(value, -1, (), products)


def _reader(node: ir.Node, index: int) -> Reader | None:
    """How a node takes the factors of its first input; None where it cannot."""
    if index != 0 or node.domain != "" or not _is_own(node, 1):
        return None
    shape = _array(node, 1).shape
    match node.op_type:
        case "Conv" if len(shape) > 2:
            groups = node.attributes.get_int("group", 1) or 1
            return Reader(node, (groups, shape[0] // groups, shape[1], -1))
        case "MatMul" if len(shape) == 2:
            return Reader(node, (1, 1, shape[0], shape[1]))
        case "Gemm" if not node.attributes.get_int("transA", 0):
            return Reader(node, (1, *shape, 1) if node.attributes.get_int("transB", 0) else (1, 1, *shape))
    return None


def _divided(value: ir.Value, is_picture: bool, channels: int) -> tuple[Divided, ...]:
    """The constants of source and steps that make a value; none where a step or the source cannot be divided."""
    steps: list[Divided] = []
    while (node := value.producer()) is not None and node.domain == "":
        source = _source(node, is_picture)
        if source:
            good = all(constant.array.shape[constant.axis] == channels for constant in (*source, *steps))
            return (*source, *steps) if good else ()
        read = _step(node, is_picture, steps)
        if read is None or not is_only_used_by(read, node):
            return ()
        value = read
    return ()


def _source(node: ir.Node, is_picture: bool) -> tuple[Divided, ...]:
    transposed = bool(node.attributes.get_int("transB", 0))
    match node.op_type, is_picture:
        case ("Conv", True):
            axes = {1: 0, 2: 0}
        case ("Gemm", False):
            axes = {1: 0 if transposed else 1, 2: -1}
        case ("MatMul", False):
            axes = {1: -1}
        case ("LayerNormalization", False) if node.attributes.get_int("axis", -1) == -1 and not _extra_outputs(node):
            axes = {1: 0, 2: 0}
        case _:
            return ()
    constants = {
        index: axis for index, axis in axes.items() if index < len(node.inputs) and node.inputs[index] is not None
    }
    return (
        tuple(Divided(node, *place) for place in constants.items())
        if all(_is_own(node, index) for index in constants)
        else ()
    )


def _step(node: ir.Node, is_picture: bool, steps: list[Divided]) -> ir.Value | None:
    """What a positively homogeneous step reads; the constant of an Add is noted. None where it is none."""
    if node.op_type in _STEPS or (is_picture and node.op_type in _POOLS and not _extra_outputs(node)):
        return node.inputs[0]
    constants = [index for index in range(len(node.inputs)) if _is_own(node, index)]
    if node.op_type != "Add" or is_picture or len(constants) != 1 or not _array(node, constants[0]).ndim:
        return None
    steps.append(Divided(node, constants[0], -1))
    return node.inputs[1 - constants[0]]


def _extra_outputs(node: ir.Node) -> bool:
    return any(value.name for value in node.outputs[1:])


def _is_own(node: ir.Node, index: int) -> bool:
    """Whether an input is a float32 constant of rank 1 or more without another reader."""
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant_of(value)
    if value is None or array is None or array.dtype != np.float32 or not array.ndim or value.is_graph_output():
        return False
    return len(value.uses()) == 1


def _array(node: ir.Node, index: int) -> Floats:
    array = constant_of(node.inputs[index])
    if array is None:
        raise TypeError(f"input {index} of {node.name} is no constant")
    return array.astype(np.float32)
