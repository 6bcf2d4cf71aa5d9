"""Factors moved from what a value's channels are multiplied by after it to what they are multiplied by before it.

    source(x)_i  →  homogeneous steps  →  Σ_i w_oi · v_i          v = f(source(x)),  f(s·v) = s·f(v) for s > 0
    source(x)_i / s_i  →  the same     →  Σ_i (w_oi · s_i) · v_i / s_i

The model computes the same in real numbers whatever the factors s > 0 are; in few bits it does not, since ranges of
weights and of v change. A site is a value v with a source that takes 1/s into its constants, and only readers that
take s into their weights:

source     Conv; Gemm, or MatMul, with constant weight and bias; LayerNormalization over the last dimension
steps      Relu, LeakyRelu; behind a Conv pools; behind others Add of a constant vector, which is divided too
readers    of channels in dimension 1 Conv, of those in the last Gemm or MatMul, with v as first input

On request a value that has readers but no such source gets a Mul by 1/s of its own before those readers: an operator
more, and the only way where LayerNormalization feeds a residual sum too, or where Gelu stands before the product.

There is no other site where a value in between has another reader or is an output of the graph, where a step is not
positively homogeneous (Clip, Gelu, Sigmoid), or where a constant has other readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compiler.compress.quant.constants import give_constant
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
    """The sites of the main graph, in its order; also those that need a Mul put in, where asked."""
    values = [value for node in model.graph for value in node.outputs[:1]]
    found = (_site(value) or (_bare_site(value) if inserts else None) for value in values)
    return tuple(site for site in found if site is not None)


def source_ranges(site: Site) -> Floats:
    """Largest absolute weight of the source for each channel (C,)."""
    first = site.divided[0]
    weight = np.moveaxis(np.abs(first.array), first.axis, 0)
    return np.asarray(weight.reshape(len(weight), -1).max(axis=1))


def reader_ranges(site: Site) -> Floats:
    """Largest absolute weight that any reader multiplies each channel by (C,)."""
    return np.asarray(np.max([np.abs(one.array).max(axis=(1, 3)).reshape(-1) for one in site.readers], axis=0))


def apply_factors(model: ir.Model, site: Site, factors: Floats, names: Names) -> None:
    """Divides at the source by the factors (C,) > 0, and multiplies at the readers; the model is changed.

    Args:
        model: The one the site is of.
        site: Where.
        factors: Rounded to powers of two they would change no bit of the results; any others change the last ones.
        names: Of the model.
    """
    for one in site.divided:
        shape = [1] * one.array.ndim
        shape[one.axis] = -1
        give_constant(model, one.node, one.index, one.array / factors.reshape(shape), names)
    for reader in site.readers:
        groups, _, channels, _ = reader.view
        scaled = reader.array * factors.reshape(groups, 1, channels, 1)
        give_constant(model, reader.node, 1, scaled.reshape(_array(reader.node, 1).shape), names)
    if not site.divided:
        _insert_mul(model, site, np.asarray(1.0 / factors, np.float32), names)


def _insert_mul(model: ir.Model, site: Site, factors: Floats, names: Names) -> None:
    value = site.value
    name = names.fresh(f"{value.name}_smoothed")
    tensor = ir.tensor(factors, name=names.fresh(f"{name}_by"))
    by = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    model.graph.register_initializer(by)
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
    found = [reader for reader in readers if reader is not None]
    if not found or len(found) < len(readers) or value.is_graph_output():
        return None
    is_picture = found[0].node.op_type == "Conv"
    channels = found[0].view[0] * found[0].view[2]
    divided = _divided(value, is_picture, channels)
    if not divided or any((one.node.op_type == "Conv") != is_picture for one in found):
        return None
    return Site(value, 1 if is_picture else -1, divided, tuple(found))


def _bare_site(value: ir.Value) -> Site | None:
    """The products that read a value, whoever made it."""
    readers = [reader for reader in (_reader(node, index) for node, index in value.uses()) if reader is not None]
    products = tuple(one for one in readers if one.node.op_type != "Conv")
    if not products or value.dtype != ir.DataType.FLOAT or any(one.view[2] != products[0].view[2] for one in products):
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
            good = all(one.array.shape[one.axis] == channels for one in (*source, *steps))
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
    given = {index: axis for index, axis in axes.items() if index < len(node.inputs) and node.inputs[index] is not None}
    return tuple(Divided(node, *one) for one in given.items()) if all(_is_own(node, index) for index in given) else ()


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
    """Whether an input is a float32 constant of one dimension or more that nobody else reads."""
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
