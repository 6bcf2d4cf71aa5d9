"""Weights as parameters of `main`, so that they need not be in the library.

TVM keeps constants in a serialized form inside the library and copies each into memory of its own at start-up. As
parameters they can lie in a file that the device maps (`bundle.weights_file`).
"""

from __future__ import annotations

from typing import Any

from compiler.target import Array
from targets.arm_tvm.graph.reading import array_digest

MIN_BYTES = 64
"""Constants smaller than this stay in the library: a parameter costs more than the copy."""


def lift_weights(module: Any) -> tuple[Any, tuple[Array, ...]]:
    """The Relax module with the constants of `main` as parameters after its own, and the arrays to pass for them."""
    from tvm import relax

    main = module["main"]
    lifter = _lifter()(module)
    body = lifter.visit_expr(main.body)
    if not lifter.weights:
        return module, ()
    params = [*main.params, *lifter.params]
    lifted = relax.Function(params, body, main.ret_ty, main.is_pure, main.attrs)
    changed = module.clone()
    changed["main"] = lifted
    return changed, tuple(lifter.weights)


def _lifter() -> Any:
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Lifter(PyExprMutator):  # type: ignore[misc]  # TVM is untyped
        """Replaces each tensor constant by a variable, equal ones by the same."""

        def __init__(self, module: Any) -> None:
            super().__init__(module)
            self.params: list[Any] = []
            self.weights: list[Array] = []
            self.known: dict[str, Any] = {}

        def visit_generic_const_(self, op: Any) -> Any:
            array = op.value.numpy() if hasattr(op.value, "numpy") else None
            if array is None or array.nbytes < MIN_BYTES:
                return op
            # By content: of weights that several nodes share every node has a packed copy of its own.
            key = array_digest(array)
            if key not in self.known:
                self.known[key] = relax.Var(f"weight{len(self.params)}", op.ty)
                self.params.append(self.known[key])
                self.weights.append(array)
            return self.known[key]

    return Lifter
