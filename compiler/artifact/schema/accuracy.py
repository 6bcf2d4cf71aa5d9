"""What a candidate loses of the task's metric against the float model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import FiniteFloat

from compiler.artifact.adapter import Detail, Number
from compiler.artifact.artifact import Evidence
from compiler.artifact.figures import figure_text


class MeasuredOn(StrEnum):
    """What is run in place of a candidate on its device."""

    ARTIFACT = "artifact"
    BORDER_MODEL = "border model"
    NOTHING = ""


@dataclass(frozen=True)
class Score:
    """A metric of one model on one set.

    Args:
        metric: Its name: `TAR@FAR=0.001`, `top-1`, `cosine`, or the function's.
        value_pct: In percent; more is better.
        low_pct: Lower end of the 95 % interval; None where there is none.
        high_pct: Upper end.
        count: Decisions it counts: genuine pairs, or samples.
        details: Other figures of the same outputs, by name.
    """

    metric: str
    value_pct: FiniteFloat
    low_pct: Number
    high_pct: Number
    count: int
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True)
class AccuracyDrop:
    """How much worse a candidate is than its reference, in percentage points of the metric.

    Args:
        metric: Its name.
        reference: The float model's score.
        candidate: The candidate's.
        drop_pct: Reference less candidate; below 0 where the candidate is better.
        low_pct: Lower end of its 95 % interval, both models on the same resamples; None where there is none.
        high_pct: Upper end.
        rule: `point` judges the drop itself, `bound` the upper end.
        judged_pct: What a limit is compared with.
        why: Why this rule, and what else the reader must know.
    """

    metric: str
    reference: Score
    candidate: Score
    drop_pct: FiniteFloat
    low_pct: Number
    high_pct: Number
    rule: Literal["point", "bound"]
    judged_pct: FiniteFloat
    why: str


class SplitKind(StrEnum):
    """How the data that choose among trials are kept from those that certify what was chosen."""

    HELD_OUT = "held out"
    CROSS_FIT = "cross-fit"
    NONE = "none"


@dataclass(frozen=True)
class TextScore:
    """What a language model's build loses on one text that chose nothing.

    Args:
        origin: The text, and its windows.
        sha256: Digest of its tokens.
        drop: The perplexity before and after, with divergence and agreement among the details of the candidate.
        passed: Whether it holds the limit.
    """

    origin: str
    sha256: str
    drop: AccuracyDrop
    passed: bool


@dataclass(frozen=True)
class Certified:
    """What the chosen trial loses on data that did not choose it.

    Args:
        how: How those data were kept apart.
        metric: The task's metric.
        drop_pct: Percentage points lost against the float model.
        low_pct: Lower end of the interval; None where there is none.
        high_pct: Upper end.
        level_pct: Level of the interval: higher where several chosen trials were certified one after another.
        rule: `point` judges the drop itself, `bound` the upper end.
        judged_pct: What the limit is compared with.
        count: Decisions that judge.
        agreed: Of the folds, how many chose what is delivered; of a half that is held out, 1.
        folds: How many folds there are.
        looks: How many trials were scored on the data that chose.
        why: The reason for this rule, and for this way of keeping data apart.
        texts: Of a language model the same for each text: the windows held out, and the text of another domain.
    """

    how: SplitKind
    metric: str
    drop_pct: FiniteFloat
    low_pct: Number
    high_pct: Number
    level_pct: FiniteFloat
    rule: Literal["point", "bound"]
    judged_pct: FiniteFloat
    count: int
    agreed: int
    folds: int
    looks: int
    why: str
    texts: tuple[TextScore, ...] = ()

    @property
    def words(self) -> str:
        """The drop with its interval, and how it was kept apart from the choice among trials."""
        if self.how == SplitKind.HELD_OUT:
            apart = f"on a held-out half, {self.count} decisions"
        else:
            apart = f"cross-fit on {self.count} decisions, {self.agreed} of {self.folds} folds chose it"
        return f"{figure_text(self.drop_pct, self.low_pct, self.high_pct)} points of {self.metric} ({apart})"


@dataclass(frozen=True)
class Threshold:
    """The similarity above which two samples show the same person, by the imported model: one for the whole fleet.

    Args:
        similarity: Cosine similarity of two embeddings.
        far: Share of impostor pairs that may be accepted: that of the metric which accuracy is judged by.
        impostor_pairs: Impostor pairs that it was set on.
        people: People that they are of: those that choose among trials, where others certify.
    """

    similarity: FiniteFloat
    far: FiniteFloat
    impostor_pairs: int
    people: int


@dataclass(frozen=True)
class Accuracy:
    """A candidate's accuracy.

    Args:
        drop: The metric before and after, and the drop that is judged; None where nothing could be run.
        measured_on: What was run.
        evidence: Where.
        note: Why there is none, or what its reader should know.
    """

    drop: AccuracyDrop | None
    measured_on: MeasuredOn
    evidence: Evidence
    note: str = ""
