"""A pass made of rewrite rules: pattern / check with a reason / rewrite, in onnxscript's notation.

onnxscript matches and builds the replacement; putting it into the graph is done here, because its own way renames
graph inputs that a rule returns, overwrites initializers of the same name, renames untouched values and nodes, trusts
defaults of overridable graph inputs as constants, and puts nodes of a rule with several outputs where their inputs do
not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult, MatchStatus, RewriteRule
from onnxscript.rewriter._pattern_ir import NodeOutputPattern, NodePattern, StringConstantPattern

from compiler.errors import InternalError
from compiler.model.graph import PassResult
from compiler.passes.values import Names, constant_tensor, display_name, graphs_of, record_origin

REWRITES_PER_NODE = 20
"""A rule set that rewrites more often than this per node of the model does not come to an end."""


@dataclass(frozen=True)
class RulePass:
    """A pass that applies rewrite rules until none matches, in the main graph and in subgraphs, not in functions.

    Notes of the result are the near misses that remain: the pattern was there, and why it was not rewritten.

    Args:
        name: The pass's name, kebab case.
        rules: Tried in this order at each node.
        commute: Whether Add, Mul and other commutative operators of the patterns also match with swapped inputs.
    """

    name: str
    rules: tuple[RewriteRule, ...]

    def __init__(self, name: str, rules: Iterable[RewriteRule], *, commute: bool = False) -> None:
        listed = tuple(variant for rule in rules for variant in (rule.commute() if commute else (rule,)))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "rules", listed)

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrites to the fixed point."""
        rules = [_indexed(rule) for rule in self.rules]
        limit = REWRITES_PER_NODE * (1 + sum(len(graph) for graph in graphs_of(model)))
        _mark_constants(model)
        names, total = Names(model), 0
        while True:
            misses = _Misses()
            count = sum(_sweep(model, graph, rules, names, misses) for graph in list(graphs_of(model)))
            total += count
            if count == 0:
                return PassResult(total > 0, misses.notes())
            if total > limit:
                raise InternalError(f"pass {self.name} rewrote {total} times and does not come to an end")


class _Misses:
    """Collects why a pattern that was there was not rewritten; onnxscript calls `log`."""

    def __init__(self) -> None:
        self._by_root: dict[tuple[int, str], str] = {}

    def log(
        self,
        rule: RewriteRule,
        container: ir.Graph,
        node: ir.Node,
        match_result: MatchResult,
        status: MatchStatus,
    ) -> None:
        shared = status == MatchStatus.NO_MATCH and match_result.reason.startswith("Matched nodes have other uses")
        if shared:
            self.add(node, _shared_reason(match_result))
        elif status in (MatchStatus.CONDITION_FAILED, MatchStatus.REPLACEMENT_FAILED):
            self.add(node, match_result.reason or "the rule gave no reason")

    def add(self, node: ir.Node, reason: str) -> None:
        self._by_root.setdefault((id(node), reason), f"{display_name(node)}: {reason}")

    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._by_root.values()))


@dataclass(frozen=True)
class _Indexed:
    """A rule with the operators it needs: few of a pass's commuted patterns can match in a given graph.

    Args:
        rule: The rule.
        root: The operator of the pattern's last node; None if several are possible.
        needs: Operators that the graph must contain for the rule to match.
    """

    rule: RewriteRule
    root: ir.OperatorIdentifier | None
    needs: frozenset[ir.OperatorIdentifier]


@cache
def _indexed(rule: RewriteRule) -> _Indexed:
    """Once for each rule: passes live as long as the process, and a pass has a hundred commuted patterns."""
    outputs: list[Any] = list(rule._target_pattern.outputs)
    first = outputs[0].producer() if isinstance(outputs[0], NodeOutputPattern) else None
    needed: set[ir.OperatorIdentifier] = set()
    while outputs:
        value = outputs.pop()
        node = value.producer() if isinstance(value, NodeOutputPattern) else None
        if node is None:  # a variable, a constant, or alternatives of which none is needed
            continue
        identifier = _identifier(node)
        needed.update([identifier] if identifier is not None else [])
        outputs.extend(node.inputs)
    return _Indexed(rule, None if first is None else _identifier(first), frozenset(needed))


def _identifier(node: NodePattern) -> ir.OperatorIdentifier | None:
    """The pattern's own `op_identifier` is lost when its inputs are swapped."""
    domain, op = node.domain, node.op
    if not isinstance(domain, StringConstantPattern) or not isinstance(op, StringConstantPattern):
        return None
    return domain.value(), op.value(), ""


def _sweep(model: ir.Model, graph: ir.Graph, rules: Sequence[_Indexed], names: Names, misses: _Misses) -> int:
    present = {node.op_identifier() for node in graph}
    able = [rule for rule in rules if rule.needs <= present]
    limit = REWRITES_PER_NODE * (1 + len(graph))
    _visit(able_rule.rule.graph_pre_visitor for able_rule in able)
    count = 0
    for node in graph:
        if node.graph is graph:
            fitting = (candidate.rule for candidate in able if candidate.root in (None, node.op_identifier()))
            count += any(_try(rule, model, graph, node, names=names, misses=misses) for rule in fitting)
        if count > limit:
            raise InternalError(f"rules rewrote {count} times in one graph and do not come to an end")
    _visit(able_rule.rule.graph_post_visitor for able_rule in able)
    return count


def _visit(visitors: Iterable[Callable[[], None] | None]) -> None:
    for visitor in visitors:
        if visitor is not None:
            visitor()


def _try(rule: RewriteRule, model: ir.Model, graph: ir.Graph, node: ir.Node, *, names: Names, misses: _Misses) -> bool:
    match = rule.match(model, graph, node, check_nodes_are_removable=rule.remove_nodes, tracer=misses)  # type: ignore[arg-type]  # a tracer is what has log()
    if not match:
        return False
    overridable = _overridable_input(match.nodes)
    if overridable is not None:
        misses.add(node, f"input '{overridable.name}' is an initializer that the caller may override")
        return False
    delta = rule.try_rewrite(model, graph, node, tracer=misses)  # type: ignore[arg-type]
    if delta is None:
        return False
    matched = [candidate for candidate in graph if candidate in set(delta.match.nodes)]
    _name_new(delta.new_nodes, delta.new_initializers, matched, names=names)
    for value in delta.new_initializers:
        graph.register_initializer(value)
    graph.insert_after(matched[-1], list(delta.new_nodes))
    _hand_over(graph, delta.match.outputs, delta.new_outputs, new_nodes=delta.new_nodes, names=names)
    _remove(graph, matched)
    if len(delta.new_outputs) > 1:
        graph.sort()
    return True


def _overridable_input(nodes: Iterable[ir.Node]) -> ir.Value | None:
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.is_graph_input() and value.const_value is not None:
                return value
    return None


def _name_new(
    nodes: Sequence[ir.Node], initializers: Sequence[ir.Value], matched: Sequence[ir.Node], *, names: Names
) -> None:
    base = matched[-1].name or matched[-1].outputs[0].name or matched[-1].op_type
    successors = list(matched)
    for node in nodes:
        heir = next((old for old in successors if old.name and old.op_type == node.op_type), None)
        if heir is not None:
            successors.remove(heir)
        node.name = heir.name if heir is not None else names.fresh(node.name or f"{base}_{node.op_type}")
        for key, text in ((key, text) for old in matched for key, text in old.metadata_props.items()):
            node.metadata_props.setdefault(key, text)
        record_origin(node, matched)
        for value in node.outputs:
            value.name = names.fresh(value.name or f"{node.name}_output")
        constant = constant_tensor(node.outputs[0]) if node.op_type == "Constant" and node.outputs else None
        if constant is not None:
            _mark_constant(node.outputs[0], constant)
    for value in initializers:
        value.name = names.fresh(value.name or f"{base}_constant")


def _hand_over(
    graph: ir.Graph,
    old_values: Sequence[ir.Value],
    new_values: Sequence[ir.Value],
    *,
    new_nodes: Sequence[ir.Node],
    names: Names,
) -> None:
    """Moves readers, names, types and graph outputs from the old values to the new ones."""
    renamed: set[ir.Value] = set()
    for old, new in zip(old_values, new_values, strict=True):
        producer = new.producer()
        if producer is None or producer not in new_nodes or new in renamed:
            new = _behind_identity(graph, old, new, names) if old.is_graph_output() else new
        if new.producer() in new_nodes or old.is_graph_output():
            renamed.add(new)
            _take_identity(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)


def _behind_identity(graph: ir.Graph, old: ir.Value, new: ir.Value, names: Names) -> ir.Value:
    """An Identity behind `new` that carries the graph output's name: `new` keeps a name of its own."""
    source = old.producer()
    if source is None:
        raise InternalError(f"rule replaces '{old.name}', which no node computes")
    identity = ir.node("Identity", [new], name=names.fresh(f"{old.name}_identity"))
    record_origin(identity, [source])
    graph.insert_after(source, [identity])
    return identity.outputs[0]


def _take_identity(old: ir.Value, new: ir.Value) -> None:
    new.type = old.type if old.type is not None else new.type
    new.shape = old.shape if old.shape is not None else new.shape
    new.doc_string = new.doc_string or old.doc_string
    for key, text in old.metadata_props.items():
        new.metadata_props.setdefault(key, text)
    old.name, new.name = None, old.name


def _remove(graph: ir.Graph, matched: Sequence[ir.Node]) -> None:
    for node in reversed(matched):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _mark_constants(model: ir.Model) -> None:
    """Lets the matcher see the tensors of Constant nodes, in subgraphs too."""
    for graph in graphs_of(model):
        for node in graph:
            if node.op_type == "Constant" and node.domain == "" and node.outputs[0].const_value is None:
                tensor = constant_tensor(node.outputs[0])
                if tensor is not None:
                    _mark_constant(node.outputs[0], tensor)


def _mark_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    value.const_value = tensor
    value.type = value.type or ir.TensorType(tensor.dtype)
    value.shape = value.shape if value.shape is not None else ir.Shape(tensor.numpy().shape)


def _shared_reason(match: MatchResult) -> str:
    matched = set(match.nodes)
    for node in match.nodes:
        for value in node.outputs:
            outside = next((user for user, _ in value.uses() if user not in matched), None)
            if (outside is not None or value.is_graph_output()) and node is not match.nodes[0]:
                reader = f"read by '{display_name(outside)}'" if outside is not None else "a graph output"
                return f"its intermediate value '{value.name}' is also {reader}"
    return "its intermediate values are also read elsewhere"
