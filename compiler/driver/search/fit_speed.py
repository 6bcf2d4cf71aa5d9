"""A candidate made anew with faster formats of its weights, until what is measured keeps the limit on time.

How long products take is known of the target's kernels by bits, against each other; how long the whole takes is
measured. What else a token costs stays as it is, so that each build comes nearer; the last one has the fastest formats.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.artifact.schema import Gate, GateName

MAX_BUILDS = 3
"""Builds after the first one: each takes as long as that."""

_LEAST = 1.0
"""All weights in the fastest format."""

_NEARER = 0.02
"""A smaller step than this is no other build."""


def shorter_time(gates: Sequence[Gate], time: float, *, builds: int) -> float | None:
    """The time that products of the next build may take; None where no other build is worth it.

    Faster formats are less accurate: what breaks another limit already would break it by more.

    Args:
        gates: The verdicts on the build.
        time: Of the build's products, against that of all weights in the fastest format; 0 where nothing is known.
        builds: Builds of the candidate before it.
    """
    refusing = [gate for gate in gates if gate.refuses]
    gate = refusing[0] if [gate.name for gate in refusing] == [GateName.LATENCY] else None
    if gate is None or gate.value is None or builds == MAX_BUILDS or time <= _LEAST + _NEARER:
        return None
    is_last = builds == MAX_BUILDS - 1
    return _LEAST if is_last else max(_LEAST, time * gate.limit / gate.value)
