"""One batch of graphs, in this process: drawn by Hypothesis from a seed, judged, and a failure shrunk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from fuzzing.graphs import graphs
from fuzzing.judge import BAD, Verdict, judge
from fuzzing.sketch import Counts, Graph

SHRINK_S = 15.0
"""Longest time that one failure is made smaller for."""


@dataclass
class Batch:
    """What a batch came to.

    Args:
        graphs: How many graphs were judged.
        verdicts: (kind of check, outcome) → how many.
        counts: The nodes by operator.
        failure: The smallest graph with the first fault that was met, and its verdict; None where all was well.
    """

    graphs: int = 0
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    failure: tuple[Graph, Verdict] | None = None


class _Fault(Exception):
    """A check failed: Hypothesis makes the graph smaller."""


class _EnoughShrinking(BaseException):
    """The time for one failure is over; no Exception, or Hypothesis would take it for another failure."""


def run_batch(
    number: int,
    count: int,
    checks_of: Callable[[int], Sequence[str]],
    *,
    before: Callable[[Graph], None] = lambda graph: None,
) -> Batch:
    """Draws and judges so many graphs; a batch ends with its first failure, made as small as the time allows.

    Args:
        number: Seed of the batch.
        count: How many graphs.
        checks_of: Number of the graph in the batch → the checks it is put through.
        before: Called with each graph before it is judged: whoever watches this process notes it.
    """
    batch = Batch()
    started: list[float] = []

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(batch.counts))
    def draw(graph: Graph) -> None:
        if started and time.monotonic() - started[0] > SHRINK_S:
            raise _EnoughShrinking
        before(graph)
        if batch.failure:
            _shrink(graph, batch)
            return
        verdicts = list(judge(graph, checks_of(batch.graphs)))
        batch.graphs += 1
        batch.verdicts.update((verdict.check, str(verdict.outcome)) for verdict in verdicts)
        bad = next((verdict for verdict in verdicts if verdict.outcome in BAD), None)
        if bad:
            batch.failure = (graph, bad)
            started.append(time.monotonic())
            raise _Fault

    # flaky: a smaller graph failed once and not again; the last one stays
    with suppress(_Fault, _EnoughShrinking, Flaky):
        draw()
    return batch


def _shrink(graph: Graph, batch: Batch) -> None:
    """Keeps a smaller graph on which the same check fails in the same way."""
    smallest, verdict = batch.failure or (graph, None)
    if verdict is None:
        return
    again = next((made for made in judge(graph, [verdict.check]) if made.check == verdict.check), None)
    if again is None or again.outcome is not verdict.outcome:
        return
    if len(graph.model.graph.node) <= len(smallest.model.graph.node):
        batch.failure = (graph, again)
    raise _Fault
