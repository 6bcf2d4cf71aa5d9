"""What a target can do, as data; and what of a model it therefore refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compiler.errors import UnsupportedModel
from compiler.target.scheme import QuantScheme

if TYPE_CHECKING:
    import onnx_ir as ir


SHOWN_NODES = 3
"""Names shown of nodes that are refused alike."""


SHOWN_VALUES = 8
"""Values shown that an attribute might have had."""


@dataclass(frozen=True)
class OpRule:
    """What a target takes of one operator.

    Args:
        dtypes: Names of the ONNX element types (`FLOAT`, `INT64`, …) its inputs and outputs may have; empty: any.
        constant_inputs: Indices of inputs that must be initializers or constants.
        rank_max: Highest rank of its inputs and outputs; 0 means any.
        attributes: Attribute name → the values it may take (compared as int, float, str or tuple).
        opset_min: Oldest opset of the model in which the operator means what the target implements.
        inputs_max: Most inputs it may be given; 0 means any number.
        outputs_max: Most outputs that may be used; 0 means any number.
        zero_inputs: Indices of inputs that must be left out or hold only zeros: zero points of a target without them.
    """

    dtypes: frozenset[str] = frozenset()
    constant_inputs: tuple[int, ...] = ()
    rank_max: int = 0
    attributes: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    opset_min: int = 1
    inputs_max: int = 0
    outputs_max: int = 0
    zero_inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class PrecisionRule:
    """One precision a target can build for this profile.

    Args:
        name: `fp32`, `fp16`, `bf16`, `int8`, `fp8`, `int4-weights`, `int4-weights-int8` (the same with activations in
            int8), `int8-weights` or `fp16-weights` (weights stored in int8 or float16, arithmetic in float32).
        reason: Why it is there on this profile, in words for the plan.
        converts_graph: Whether the border model itself must be converted (the target is strongly typed), or the
            target converts while it builds.
        tolerance: Name of the tolerance its results are judged by; those of a scheme against the border model.
        gain: Inferences per second against float32, as the target's makers expect them on this profile: the order in
            which candidates are tried, never a figure of a report.
        scheme: How operators are quantized; None for a precision of floating point.
        width_multiple: Channels that its kernels work on at once on this profile: a pruned layer is as wide as a
            multiple of it, since the lanes left over would cost as much as if they were used.
        form_of: Precision that this one is another form of: who asks for that one, with limits to judge by, gets the
            faster of the two; empty: of none.
    """

    name: str
    reason: str
    converts_graph: bool
    tolerance: str
    gain: float = 1.0
    scheme: QuantScheme | None = None
    width_multiple: int = 4
    form_of: str = ""


@dataclass(frozen=True)
class Capability:
    """What one target can do on one profile.

    Args:
        ops: Operator → rule. A key is `Conv` for the default ONNX domain, `domain::Op` for any other.
        precisions: By name, in order of preference; refusals of the others are in `precision_refusals`.
        precision_refusals: Precision name → why it is not to be had on this profile.
        dynamic_dims: Whether a dimension may stay a range in the artifact.
        ranges_max: Most dimensions that may be ranges; 0 means any number.
        fixed_sizes: How a range is built of fixed sizes, in words for the plan; empty where shapes stay open. What is
            refused is then judged at such sizes, by `Target.build`.
        keeps_cache: Whether fixed sizes do for a language model: its cache has its whole size, and is written in place.
        narrow_cache: Whether such a cache may be in 8 bits, where the precision's scheme has formats of weights alone.
        opset_max: Newest version of the default domain that the toolchain reads.
        op_refusals: Operator that is not in `ops` → why not, and what to do instead.
    """

    ops: Mapping[str, OpRule]
    precisions: tuple[PrecisionRule, ...]
    dynamic_dims: bool
    opset_max: int
    precision_refusals: Mapping[str, str] = field(default_factory=dict)
    op_refusals: Mapping[str, str] = field(default_factory=dict)
    ranges_max: int = 0
    fixed_sizes: str = ""
    keeps_cache: bool = False
    narrow_cache: bool = False


@dataclass(frozen=True)
class Refusal:
    """One node that a target (or a pass) does not take, and why."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}': {self.reason}"


def group_refusals(refusals: Sequence[Refusal]) -> tuple[str, ...]:
    """One line per operator and reason, in order: a model may have a hundred nodes that are refused alike."""
    groups: dict[tuple[str, str], list[str]] = {}
    for refusal in dict.fromkeys(refusals):
        groups.setdefault((refusal.op, refusal.reason), []).append(refusal.node)
    return tuple(_group_line(op, reason, nodes) for (op, reason), nodes in groups.items())


def _group_line(op: str, reason: str, nodes: Sequence[str]) -> str:
    if len(nodes) == 1:
        return str(Refusal(nodes[0], op, reason))
    names = ", ".join(f"'{node}'" for node in nodes[:SHOWN_NODES])
    more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    return f"{op}, {len(nodes)} nodes ({names}{more}): {reason}"


def op_key(node: ir.Node) -> str:
    """The operator as `Capability.ops` spells it."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def find_unsupported(model: ir.Model, capability: Capability) -> tuple[Refusal, ...]:
    """Every node that the capability does not cover, in graph order, subgraphs included."""
    return tuple(
        Refusal(node.name or "(unnamed)", op_key(node), reason)
        for node in model.graph.all_nodes()
        for reason in _reasons(node, capability, model.graph.opset_imports.get(node.domain, 1))
    )


def is_refused(node: ir.Node, capability: Capability, opset: int) -> bool:
    """Whether the capability does not cover a node of a model of that opset."""
    return any(True for _ in _reasons(node, capability, opset))


def refuse_unsupported(model: ir.Model, capability: Capability, *, target: str) -> None:
    """Raises UnsupportedModel that lists every refusal, or says that the model's opset is too new for the toolchain.

    Of a model whose sizes the target fixes itself, its build does.
    """
    opset = model.graph.opset_imports.get("", 1)
    if opset > capability.opset_max:
        raise UnsupportedModel(
            f"the model is written in opset {opset}; target '{target}' reads up to {capability.opset_max}",
            remedy=f"Export the model with opset {capability.opset_max} or older.",
        )
    if not is_judged_by_build(model, capability):
        raise_refusals(model, find_unsupported(model, capability), target=target)


def is_judged_by_build(model: ir.Model, capability: Capability) -> bool:
    """Whether a model has open sizes that the target fixes when it builds: only then it is seen what is refused."""
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    return bool(capability.fixed_sizes) and not all(shape.is_static() for shape in shapes)


def raise_refusals(model: ir.Model, refusals: Sequence[Refusal], *, target: str) -> None:
    """Raises UnsupportedModel that lists the refusals, those alike together; nothing where there are none."""
    if refusals:
        lines = "\n".join(f"  - {line}" for line in group_refusals(refusals))
        raise UnsupportedModel(
            f"target '{target}' refuses {len(refusals)} of {sum(1 for _ in model.graph.all_nodes())} nodes:\n{lines}",
            remedy="Choose another target for this device, or replace these operators in the model.",
        )


def _reasons(node: ir.Node, capability: Capability, opset: int) -> Iterator[str]:
    key = op_key(node)
    rule = capability.ops.get(key)
    if rule is None:
        yield capability.op_refusals.get(key, f"the target has no operator {key}")
        return
    if opset < rule.opset_min:
        yield f"opset {opset} gives it another meaning than the one the target implements, that of {rule.opset_min}"
    yield from _dtype_reasons(node, rule)
    yield from _input_reasons(node, rule)
    yield from _attribute_reasons(node, rule)


def _dtype_reasons(node: ir.Node, rule: OpRule) -> Iterator[str]:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None]
    dtypes = {value.dtype.name for value in values if value.dtype is not None}
    if rule.dtypes and not dtypes <= rule.dtypes:
        yield f"element type {', '.join(sorted(dtypes - rule.dtypes))} is not among {', '.join(sorted(rule.dtypes))}"
    ranks = [len(value.shape) for value in values if value.shape is not None]
    if rule.rank_max and max(ranks, default=0) > rule.rank_max:
        yield f"rank {max(ranks)} is above {rule.rank_max}"


def _input_reasons(node: ir.Node, rule: OpRule) -> Iterator[str]:
    read = max((index + 1 for index, value in enumerate(node.inputs) if value is not None), default=0)
    if rule.inputs_max and read > rule.inputs_max:
        yield f"it has {read} inputs; the target takes {rule.inputs_max}"
    made = max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=0)
    if rule.outputs_max and made > rule.outputs_max:
        yield f"it has {made} outputs; the target gives {rule.outputs_max}"
    for index in rule.constant_inputs:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and value.const_value is None:
            yield f"input {index} must be a constant"
    for index in rule.zero_inputs:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and (value.const_value is None or value.const_value.numpy().any()):
            yield f"input {index} must be zero, or left out"


def _attribute_reasons(node: ir.Node, rule: OpRule) -> Iterator[str]:
    for name, allowed in rule.attributes.items():
        attribute = node.attributes.get(name)
        if attribute is None:
            continue
        value = tuple(attribute.value) if isinstance(attribute.value, (list, tuple)) else attribute.value
        if value not in allowed:
            yield f"attribute {name}={value!r} is {_none_of(allowed)}"


def _none_of(allowed: Sequence[object]) -> str:
    shown = ", ".join(map(repr, allowed[:SHOWN_VALUES]))
    more = len(allowed) - SHOWN_VALUES
    return f"not among {shown}" + (f" and {more} more" if more > 0 else "")
