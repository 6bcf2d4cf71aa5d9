"""Whether an artifact computes what its reference does, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import FiniteFloat

from compiler.artifact.artifact import Evidence


class ParityStatus(StrEnum):
    """Whether an artifact was compared with its reference; one that differs is an error, and not delivered."""

    PASSED = "passed"
    NOT_EXECUTED = "not executed"


class Reference(StrEnum):
    """What an artifact is compared with."""

    IMPORTED_MODEL = "imported model"
    BORDER_MODEL = "border model"


@dataclass(frozen=True)
class ExactOutput:
    """An output that is equal to the bit."""

    elements: int
    exact: Literal[True] = True


@dataclass(frozen=True)
class OutputDifference:
    """How far an output is from its reference.

    Args:
        elements: How many elements were compared.
        sqnr_db: Signal-to-quantization-noise ratio in dB.
        cosine: Cosine similarity, −1 to 1.
        worst_abs: Largest absolute difference of one element.
        worst_index: Where that element stands.
    """

    elements: int
    sqnr_db: FiniteFloat
    cosine: FiniteFloat
    worst_abs: FiniteFloat
    worst_index: tuple[int, ...]


@dataclass(frozen=True)
class ParityPoint:
    """The outputs at one set of sizes: output name → how it compares."""

    sizes: str
    outputs: Mapping[str, ExactOutput | OutputDifference]


@dataclass(frozen=True)
class Parity:
    """The comparison of an artifact with its reference.

    Args:
        status: Whether it was executed and agrees.
        tolerance: Name of the tolerance.
        evidence: Where the artifact ran.
        reason: Why it was not executed, or what the runner says about the run.
        points: The outputs, size by size.
        products_sqnr_db: Of a model that rounds activations while it runs: the worst of what is rounded and of the
            outputs where each product is given what the border model gives it, in dB; None of other models, and where
            all are equal or nothing ran.
    """

    status: ParityStatus
    tolerance: str
    evidence: Evidence
    reason: str
    points: tuple[ParityPoint, ...] = ()
    products_sqnr_db: FiniteFloat | None = None

    @property
    def worst_sqnr_db(self) -> float | None:
        """Over sizes and outputs; None where everything is equal or nothing ran."""
        outputs = (output for point in self.points for output in point.outputs.values())
        return min((output.sqnr_db for output in outputs if isinstance(output, OutputDifference)), default=None)


@dataclass(frozen=True)
class Verdict:
    """The parity of an artifact and of its border model.

    Args:
        parity: Of the artifact.
        reference: What the artifact was compared with.
        border: Of the border model with the imported model, in ONNX Runtime; None in manifests of older versions.
        weak_proofs: Why comparisons say little: outputs that do not depend on the samples, made-up integers.
    """

    parity: Parity
    reference: Reference
    border: Parity | None = None
    weak_proofs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Milliseconds of an artifact's runs at one set of sizes, and items per second at the median."""

    sizes: str
    runs: int
    p50_ms: FiniteFloat
    p90_ms: FiniteFloat
    p99_ms: FiniteFloat
    items_per_s: FiniteFloat
