"""What depends on constants alone, computed: weights that the model reshapes or transposes are constants only then.

TVM compiles a kernel for each operator that it folds, a tenth of a second each. Its importer reshapes the bias of
every convolution, and that is the same numbers: it is done here.
"""

from __future__ import annotations

from typing import Any

from targets.arm_tvm.graph.reading import constant, operator_name, shape_of


def fold_constants(module: Any) -> Any:
    """The Relax module with what depends on constants alone in place of what computes it."""
    from tvm import relax

    main = _reshaper()(module).visit_expr(module["main"])
    folded = module.clone()
    folded["main"] = main
    return relax.transform.FoldConstant()(folded)


def _reshaper() -> Any:
    import tvm
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Reshaper(PyExprMutator):  # type: ignore[misc]  # TVM is untyped
        """Reshapes constants."""

        def visit_call_(self, op: Any) -> Any:
            array = constant(op.args[0]) if operator_name(op) == "relax.reshape" else None
            if array is None or not shape_of(op):
                return super().visit_call_(op)
            return relax.const(tvm.runtime.tensor(array.reshape(shape_of(op))))

    return Reshaper
