"""Epilogue of a kernel: the steps after its sum, done on the vector before it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from targets.arm_tvm.kernels.emitter import Emitter, broadcast
from targets.arm_tvm.kernels.expressions import evaluate


def finish(emitter: Emitter, value: Any, steps: Sequence[str], residual: Any, *, lanes: int, dtype: str) -> Any:
    """The vector after all steps.

    Args:
        emitter: Takes what is computed on the way.
        value: The sum with its bias.
        steps: As in `ConvWorkload.epilogue`.
        residual: The vector that `add` takes; None where there is none.
        lanes: Elements of the vector.
        dtype: Of one element.

    Raises:
        ValueError: A step nobody knows.
    """
    from tvm import tirx

    for step in steps:
        name, *numbers = step.split()
        # Expressions have brackets; named steps have none.
        if "(" in step:
            value = evaluate(step, value, emitter=emitter, lanes=lanes, dtype=dtype)
        elif name == "add" and residual is not None:
            value = value + residual
        elif name == "relu":
            value = tirx.max(value, broadcast(0.0, lanes, dtype))
        elif name == "clip":
            low, high = (broadcast(float(number), lanes, dtype) for number in numbers)
            value = tirx.min(tirx.max(value, low), high)
        else:
            raise ValueError(f"no epilogue step is called '{step}'")
    return value
