"""A build against another on photographs of faces: the verdict of `fleetc ab --shadow`, and after how many requests.

A request is what a door asks: a photograph of who stands there, and one of who they say they are. Half of the requests
are of one person, half of two; people and photographs are drawn from a fixed seed, with replacement. So the bounds are
for these photographs, and say nothing of other people.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_face_model import FACE
from numpy.typing import NDArray

from compiler.artifact.manifest import Delivered, read_artifact
from compiler.artifact.schema import GateName
from compiler.driver.measure.accuracy import run_artifact
from compiler.evaluate import open_evaluation
from compiler.fleet.data import Evaluation
from compiler.target.isolate import ChildLimits
from rollout.answers import Answers
from rollout.limits import Limits, divide_alpha
from rollout.metric import Metric
from rollout.verdict import Decision, Rules, Traffic, Verdict, judge

SEED, REQUESTS, LOOK_EVERY = 16, 6000, 50

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def faces(current: Path, candidate: Path, photographs: Path) -> dict[str, Any]:
    """The verdict, with what it is drawn from.

    Args:
        current: The build in use, whose manifest has the fleet's threshold.
        candidate: The build that would take its place, whose accuracy gate says how much may be lost.
        photographs: One folder per person.
    """
    builds = [read_artifact(folder) for folder in (current, candidate)]
    threshold = builds[0].manifest.threshold
    gate = next(gate for gate in builds[1].manifest.gates if gate.name == GateName.ACCURACY)
    if threshold is None:
        raise SystemExit(f"{current} was not built for verification")
    embedded = [embed(build, photographs) for build in builds]
    labels = embedded[0][1]
    # as many decisions may change as the fleet's limit lets be lost
    limits = Limits(decision_share=gate.limit / 100, threshold=threshold.similarity)
    pairs = draw_pairs(labels)
    verdict, first = judged([vectors[pairs].reshape(-1, vectors.shape[1]) for vectors, _ in embedded], limits)
    return {
        "precisions": [build.artifact.precision for build in builds],
        "people": len(np.unique(labels)),
        "photographs": len(labels),
        "threshold": round(threshold.similarity, 6),
        "far": threshold.far,
        "limit_pct": gate.limit,
        "requests": len(pairs),
        "verdict": str(verdict.decision),
        "first_ship_after": first,
        "metrics": {metric.name: row(metric) for metric in verdict.metrics},
        "every_pair": every_pair([vectors for vectors, _ in embedded], labels, threshold.similarity),
    }


def embed(build: Delivered, photographs: Path) -> tuple[Floats, NDArray[Any]]:
    """The build's embeddings of all photographs, and who each shows."""
    evaluation = Evaluation(task="verification", path=photographs)
    dataset = open_evaluation(evaluation, build.artifact.inputs, FACE)
    outputs, _ = run_artifact(build.artifact, dataset, batch=1, where="faces", child_limits=ChildLimits())
    return next(iter(outputs.values())).astype(np.float32), np.asarray(dataset.labels)


def draw_pairs(labels: NDArray[Any]) -> Indices:
    """(REQUESTS, 2) photographs of each request: of one person, then of two, in turn."""
    generator, people = np.random.default_rng(SEED), [np.flatnonzero(labels == name) for name in np.unique(labels)]
    pairs = []
    for number in range(REQUESTS):
        first, second = generator.choice(len(people), size=2, replace=False)
        if number % 2:
            pairs.append([generator.choice(people[first]), generator.choice(people[second])])
        else:
            pairs.append(list(generator.choice(people[first], size=2, replace=False)))
    return np.array(pairs)


def judged(rows: list[Floats], limits: Limits) -> tuple[Verdict, int | None]:
    """The verdict at the end, and the requests after which it was `ship` for the first time; None if it never was."""
    answers, alphas, first = Answers(limits.threshold), divide_alpha(2, has_latency=False), None
    for start in range(0, REQUESTS, LOOK_EVERY):
        part = slice(2 * start, 2 * (start + LOOK_EVERY))
        answers.add({"embedding": rows[1][part]}, {"embedding": rows[0][part]})
        seen = start + LOOK_EVERY
        verdict = judge(answers.metrics(limits, alphas), Traffic(seen, seen), Rules(ramp=()))
        if verdict.decision == Decision.SHIP and first is None:
            first = seen
        if verdict.decision == Decision.ROLL_BACK:
            break  # a guardrail ends it, whatever would come later
    return verdict, first


def row(metric: Metric) -> dict[str, Any]:
    """A metric with its bounds, for the record."""
    return {
        "candidate": round(float(metric.candidate), 6),
        "low": round(metric.bounds.low, 6),
        "high": round(metric.bounds.high, 6),
        "limit": metric.limit,
        "state": str(metric.state),
    }


def every_pair(embedded: list[Floats], labels: NDArray[Any], threshold: float) -> dict[str, Any]:
    """Decisions that differ among all pairs there are: the truth that the requests are drawn from."""
    first, second = np.triu_indices(len(labels), k=1)
    is_same = labels[first] == labels[second]
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in embedded]
    accepted = [np.einsum("ij,ij->i", vectors[first], vectors[second]) > threshold for vectors in unit]
    counts = {
        f"{kind}_{what}": int((mask & change).sum())
        for (kind, mask), (what, change) in itertools.product(
            (("genuine", is_same), ("impostor", ~is_same)),
            (("newly_accepted", ~accepted[0] & accepted[1]), ("newly_refused", accepted[0] & ~accepted[1])),
        )
    }
    return {"genuine": int(is_same.sum()), "impostor": int((~is_same).sum()), **counts}
