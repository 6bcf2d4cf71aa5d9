"""Placement of Q/DQ: which nodes run quantized, which inputs they read dequantized, which values share a scale.

1. A node with weights runs quantized if the scheme has its operator and its inputs are what the scheme takes.
2. A node without weights does if a quantized node reads its result, directly or behind activations that it fuses.
3. One that only passes values on (MaxPool, Reshape, Concat) has the same scale for input and output.
4. A quantized node reads each run-time input dequantized, except one that is an intermediate result of the fused kernel
   that computes this node too (Conv → Add): it is not rounded there.
All other nodes read the float values. Subgraphs are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from compiler.passes.values import constant_tensor
from compiler.target.scheme import OpScheme, QuantScheme, TensorFormat

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass
class Placement:
    """Result of `place`.

    Args:
        reads: Node → indices of run-time inputs it reads dequantized.
        weights: Node → index → format of its constant inputs.
        formats: Value → its format.
        groups: Value → the representative of all values that share its scale (union-find).
        why: Node → reason, for quantized nodes.
        why_float: Node → reason, for nodes that the scheme has an operator for and that stay float.
    """

    reads: dict[ir.Node, list[int]] = field(default_factory=dict)
    weights: dict[ir.Node, dict[int, TensorFormat]] = field(default_factory=dict)
    formats: dict[ir.Value, TensorFormat] = field(default_factory=dict)
    groups: dict[ir.Value, ir.Value] = field(default_factory=dict)
    why: dict[ir.Node, str] = field(default_factory=dict)
    why_float: dict[ir.Node, str] = field(default_factory=dict)

    def group(self, value: ir.Value) -> ir.Value:
        """The representative of all values that share this one's scale."""
        while self.groups.get(value, value) is not value:
            value = self.groups[value]
        return value

    def join(self, first: ir.Value, second: ir.Value) -> None:
        """Makes two values share one scale."""
        self.groups[self.group(first)] = self.group(second)


def place(model: ir.Model, scheme: QuantScheme, keep_float: Mapping[str, str]) -> Placement:
    """Decides where a scheme quantizes a model.

    Args:
        model: With types and shapes inferred; every node has a name.
        scheme: The target's.
        keep_float: Node name → why it shall stay in floating point.
    """
    placed = Placement()
    nodes = [node for node in model.graph if node.domain == ""]
    kernels = _kernels(nodes, scheme, keep_float)
    wanted: set[ir.Value] = set()
    # from the outputs to the inputs: whether an operator without weights is worth it depends on its readers
    for node in reversed(nodes):
        rule = scheme.ops.get(node.op_type)
        if rule is None:
            _want_through(node, scheme, wanted)
            continue
        reason = keep_float.get(str(node.name)) or _why_float(node, rule, scheme)
        if not reason and not rule.weights and node.outputs[0] not in wanted:
            reason = "no quantized operator reads its result"
        if reason:
            placed.why_float[node] = reason
        else:
            _place_node(node, rule, placed, wanted, kernels)
    return placed


@dataclass(frozen=True)
class _Kernel:
    """What computes a value: a quantized product and what it fuses, up to the value.

    Args:
        product: The node with the weights.
        rule: The scheme's rule of it.
        number: How many such values are made before this one, in graph order.
    """

    product: ir.Node
    rule: OpScheme
    number: int


def _kernels(nodes: list[ir.Node], scheme: QuantScheme, keep_float: Mapping[str, str]) -> dict[ir.Value, _Kernel]:
    """Value → the quantized product whose fused kernel computes it."""
    kernels: dict[ir.Value, _Kernel] = {}
    for node in nodes:
        rule = scheme.ops.get(node.op_type)
        out = node.outputs[0]
        if rule is not None and rule.weights and rule.fuses:
            if str(node.name) not in keep_float and not _why_float(node, rule, scheme):
                kernels[out] = _Kernel(node, rule, len(kernels))
            continue
        taken = _fused_input(node, kernels)
        if taken is not None:
            kernels[out] = replace(kernels[taken], number=len(kernels))
    return kernels


def _fused_input(node: ir.Node, kernels: Mapping[ir.Value, _Kernel]) -> ir.Value | None:
    """The input whose fused kernel computes this node too; of several the one computed last."""
    fitting = [
        value
        for value in node.inputs
        if value is not None
        and value in kernels
        and node.op_type in kernels[value].rule.fuses
        and len(value.uses()) == 1
        if not value.is_graph_output()
    ]
    return max(fitting, key=lambda value: kernels[value].number, default=None)


def _want_through(node: ir.Node, scheme: QuantScheme, wanted: set[ir.Value]) -> None:
    """A wanted result of an activation makes its input wanted where its producer fuses the activation."""
    value = node.inputs[0] if node.inputs else None
    if value is None or node.outputs[0] not in wanted:
        return
    source = value.producer()
    rule = scheme.ops.get(source.op_type) if source is not None else None
    if rule is not None and node.op_type in rule.fuses:
        wanted.add(value)


def _place_node(
    node: ir.Node,
    rule: OpScheme,
    placed: Placement,
    wanted: set[ir.Value],
    kernels: Mapping[ir.Value, _Kernel],
) -> None:
    fused = _fused_input(node, kernels) if not rule.weights or not _constant_weights(node, rule) else None
    placed.weights[node] = _constant_weights(node, rule)
    reads = placed.reads.setdefault(node, [])
    for index, format_ in run_time_inputs(node, rule):
        value = node.inputs[index]
        if value is None or index in placed.weights[node]:
            continue
        if value is fused:
            continue
        wanted.add(value)
        handed = placed.formats.get(node.outputs[0], format_)
        placed.formats.setdefault(value, format_ if rule.quantizes_output else handed)
        if not rule.quantizes_output:
            placed.join(value, node.outputs[0])
        reads.append(index)
    reads.sort()
    if fused is not None:
        placed.why[node] = f"computed in the kernel of '{kernels[fused].product.name}'"
    elif rule.quantizes_output:
        placed.why[node] = "the scheme quantizes it"
    else:
        placed.why[node] = "passes quantized values on"


def run_time_inputs(node: ir.Node, rule: OpScheme) -> list[tuple[int, TensorFormat]]:
    """Inputs that the rule quantizes; a Concat has all of them by the rule of its first."""
    if node.op_type == "Concat" and 0 in rule.inputs:
        return [(index, rule.inputs[0]) for index in range(len(node.inputs))]
    return [(index, format_) for index, format_ in rule.inputs.items() if index < len(node.inputs)]


def _constant_weights(node: ir.Node, rule: OpScheme) -> dict[int, TensorFormat]:
    return {
        index: format_
        for index, format_ in rule.weights.items()
        if index < len(node.inputs) and constant_tensor(node.inputs[index]) is not None
    }


def _why_float(node: ir.Node, rule: OpScheme, scheme: QuantScheme) -> str:
    """Why a node cannot run quantized; empty where it can."""
    weights = _constant_weights(node, rule)
    for index, value in enumerate(node.inputs):
        if value is None or not (index in rule.weights or index in dict(run_time_inputs(node, rule))):
            continue
        if value.dtype != ir.DataType.FLOAT:
            return f"input {index} is {value.dtype.name if value.dtype else 'of unknown type'}, not float32"
        constant = constant_tensor(value) is not None
        if constant and index not in weights:
            return f"input {index} is a constant, which the scheme does not quantize"
        if not constant and index not in dict(run_time_inputs(node, rule)):
            return f"input {index} is computed at run time, and the scheme wants it constant"
    if len([value for value in node.outputs if value.name]) > 1:
        return "it has more than one result"
    return _why_not_worth(node, weights, scheme)


def _why_not_worth(node: ir.Node, weights: Mapping[int, TensorFormat], scheme: QuantScheme) -> str:
    for index, format_ in weights.items():
        shape = constant_tensor(node.inputs[index]).shape.numpy()  # type: ignore[union-attr]  # is a constant
        if node.op_type in PRODUCTS:
            if len(shape) < 2:
                return f"its weight has {len(shape)} dimension"
            terms = _terms(node, tuple(shape))
            if terms < scheme.min_inputs:
                return f"a product of {terms} terms costs less than quantizing what it reads"
            if format_.block_size and (len(shape) != 2 or shape[_block_axis(node)] % format_.block_size):
                return f"its weight of shape {list(shape)} has no whole blocks of {format_.block_size}"
    return ""


def _terms(node: ir.Node, shape: tuple[int, ...]) -> int:
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", False)):
        return int(shape[-2])
    size = 1
    for dim in shape[1:]:
        size *= dim
    return size


def _block_axis(node: ir.Node) -> int:
    """The dimension that a product sums over."""
    return 1 if node.op_type == "Gemm" and node.attributes.get_int("transB", False) else 0


def channel_axis(node: ir.Node, format_: TensorFormat, rank: int) -> int | None:
    """The dimension of a weight that scales go along; None: one scale for all of it."""
    if format_.granularity == "tensor" or (node.op_type == "MatMul" and rank != 2):
        return None
    if format_.granularity == "block":
        return _block_axis(node)
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1 if node.attributes.get_int("group", 1) == 1 else None
        case "Gemm":
            return 0 if node.attributes.get_int("transB", False) else 1
        case "MatMul":
            return rank - 1
    return None
