"""Weights as parameters of `main`, so that they need not be in the library.

TVM keeps constants in a serialized form inside the library and copies each into memory of its own at start-up. As
parameters they can lie in a file that the device maps (`bundle.weights_file`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.target import Array
from targets.arm_tvm.graph.reading import array_digest

MIN_BYTES = 64
"""Constants smaller than this stay in the library: a parameter costs more than the copy."""


def lift_weights(modules: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Array, ...]]:
    """The Relax modules with the constants of `main` as parameters after its own, and the arrays to pass for them.

    Args:
        modules: One model at one or more sizes; all get the same parameters, so that the arrays are stored once.
    """
    weights: dict[str, Array] = {}
    bodies = []
    for module in modules:
        lifter = _lifter()(module)
        lifter.weights = weights
        bodies.append((lifter.visit_expr(module["main"].body), lifter.params))
    if not weights:
        return tuple(modules), ()
    lifted = tuple(
        _with_params(module, body, params, weights) for module, (body, params) in zip(modules, bodies, strict=True)
    )
    return lifted, tuple(weights.values())


def _with_params(module: Any, body: Any, used: Mapping[str, Any], weights: Mapping[str, Array]) -> Any:
    from tvm import relax

    main = module["main"]
    params = [
        used[key] if key in used else relax.Var(f"weight{place}", relax.TensorType(array.shape, array.dtype.name))
        for place, (key, array) in enumerate(weights.items())
    ]
    changed = module.clone()
    changed["main"] = relax.Function([*main.params, *params], body, main.ret_ty, main.is_pure, main.attrs)
    return changed


def _lifter() -> Any:
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Lifter(PyExprMutator):  # type: ignore[misc]  # TVM is untyped
        """Replaces each tensor constant by a variable, equal ones by the same."""

        def __init__(self, module: Any) -> None:
            super().__init__(module)
            self.params: dict[str, Any] = {}
            self.weights: dict[str, Array] = {}

        def visit_generic_const_(self, op: Any) -> Any:
            array = op.value.numpy() if hasattr(op.value, "numpy") else None
            if array is None or array.nbytes < MIN_BYTES:
                return op
            # By content: of weights that several nodes share every node has a packed copy of its own.
            key = array_digest(array)
            self.weights.setdefault(key, array)
            if key not in self.params:
                self.params[key] = relax.Var(f"weight{list(self.weights).index(key)}", op.ty)
            return self.params[key]

    return Lifter
