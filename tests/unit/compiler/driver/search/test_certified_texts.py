"""A language model's limit holds on every text that chose nothing, not on the one it does best on."""

from __future__ import annotations

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import (
    Accuracy,
    AccuracyDrop,
    Certified,
    GateName,
    MeasuredOn,
    Purpose,
    Score,
    SplitKind,
    TextScore,
)
from compiler.driver.search.certify import with_certified
from compiler.driver.search.trial import Trial
from compiler.evaluate.gates import Figure, judge_gates
from compiler.fleet import Limits

LIMIT = 5.0
METRIC = "perplexity, 100 less its increase"


def drop(lost: float) -> AccuracyDrop:
    before, after = (Score(METRIC, value, None, None, 768) for value in (100.0, 100.0 - lost))
    return AccuracyDrop(
        METRIC, before, after, lost, lost - 1, lost + 1, "point", lost, "one of 768 decisions weighs 0.13"
    )


def certified(own: float, other: float) -> Certified:
    texts = (
        TextScore("manual.txt, the half held out", "0" * 64, drop(own), own <= LIMIT),
        TextScore("novel.txt", "1" * 64, drop(other), other <= LIMIT),
    )
    return Certified(SplitKind.HELD_OUT, METRIC, own, own - 1, own + 1, 95.0, "point", own, 768, 1, 1, 1, "why", texts)


def chosen() -> Trial:
    accuracy = Accuracy(drop(2.0), MeasuredOn.ARTIFACT, Evidence.HOST)
    gates = judge_gates(Limits(accuracy_drop_pct=LIMIT), {GateName.ACCURACY: Figure(2.0, Evidence.HOST)})
    return Trial(1, Purpose.CANDIDATE, "int4-weights", accuracy=accuracy, gates=gates)


@pytest.mark.parametrize(
    ("own", "other", "judged", "passed"),
    [(2.5, 3.5, 3.5, True), (2.5, 7.0, 7.0, False), (7.0, 2.5, 7.0, False), (3.5, 2.5, 3.5, True)],
)
def test_the_text_that_loses_most_is_judged(own: float, other: float, judged: float, passed: bool) -> None:
    (gate,) = with_certified(chosen(), certified(own, other), LIMIT).gates
    assert gate.value == judged and gate.passed is passed and gate.limit == LIMIT
    assert ("on novel.txt" in gate.why) == (other > own)
