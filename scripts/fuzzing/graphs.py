"""The strategy: whole graphs of drawn nodes."""

from __future__ import annotations

from hypothesis import reject
from hypothesis import strategies as st

from fuzzing import control, elementwise, layers, movement
from fuzzing.sketch import Counts, Graph, Sketch

_FAMILIES = (elementwise.STEPS, movement.STEPS, layers.STEPS, control.STEPS)


@st.composite
def graphs(draw: st.DrawFn, counts: Counts, steps_max: int = 8) -> Graph:
    """A model that both oracles run with equal results, and its inputs.

    Args:
        draw: Hypothesis' own.
        counts: Where nodes are counted by operator.
        steps_max: Most pieces; a piece is one to eight nodes.
    """
    sketch = Sketch(draw, counts)
    for _ in range(sketch.integer(1, steps_max)):
        family = sketch.choice(*(_FAMILIES[:3] * 5), _FAMILIES[3])
        sketch.choice(*family)(sketch)
    graph = sketch.finish()
    return graph if graph is not None else reject()
