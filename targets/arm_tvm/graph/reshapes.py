"""Reshapes that copy nothing: TVM gives the same memory another shape where a reshape stands alone.

Fused with what is next to it, which includes another reshape, it becomes arithmetic of indices for each element, that
no vectors are made of.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.graph.reading import operator_name, shape_of
from targets.arm_tvm.kernels.emitter import OPAQUE


def merge_reshapes(module: Any) -> Any:
    """The Relax module in which no reshape reads another, nor gives the shape that there is."""
    from tvm import relax

    merged = module.clone()
    merged["main"] = _merger()(module).visit_expr(module["main"])
    return relax.transform.DeadCodeElimination(["main"])(merged)


def keep_reshapes_apart(module: Any) -> Any:
    """The Relax module, legalized, whose reshapes are not to be fused with other kernels."""
    import tvm
    from tvm import relax

    apart = tvm.IRModule(module.functions, attrs=module.attrs)
    for variable, function in module.functions_items():
        is_given = not isinstance(function, tvm.tirx.PrimFunc) or "op_pattern" in (function.attrs or {})
        if not is_given and relax.analysis.has_reshape_pattern(function):
            apart[variable] = function.with_attr("op_pattern", OPAQUE)
    return apart


def _merger() -> Any:
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Merger(PyExprMutator):  # type: ignore[misc]  # TVM is untyped
        """Reads through reshapes."""

        def visit_call_(self, op: Any) -> Any:
            call = super().visit_call_(op)
            if operator_name(call) != "relax.reshape" or not isinstance(call.args[0], relax.Var):
                return call
            before = self.lookup_binding(call.args[0])
            source = before.args[0] if operator_name(before) == "relax.reshape" else call.args[0]
            if shape_of(source) and shape_of(source) == shape_of(op):
                return source
            return call if source.same_as(call.args[0]) else relax.op.reshape(source, call.args[1])

    return Merger
