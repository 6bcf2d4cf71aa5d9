"""The verdict: what rolls back, what waits, what is unhealthy; and stored answers of two builds."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from compiler.artifact.adapter import to_json
from compiler.errors import DataError, GateFailed
from rollout.answers import Answers
from rollout.bounds import Bounds
from rollout.commands import ab
from rollout.limits import Limits, divide_alpha
from rollout.means import Moments
from rollout.metric import Judged, Metric, Role, State, make_metric, mean_metric, share_metric
from rollout.replay import Recording, read_recording, replay
from rollout.shares import Count
from rollout.text import verdict_text
from rollout.verdict import RAMP, Decision, Rules, Traffic, judge

SHADOW = Rules(ramp=())
GOOD = share_metric("late", Count(5000, 5), limit=0.01, role=Role.GUARDRAIL)
BAD = share_metric("late", Count(1000, 60), limit=0.01, role=Role.GUARDRAIL)
OPEN = share_metric("late", Count(200, 0), limit=0.01, role=Role.GUARDRAIL)
TRAFFIC = Traffic(5000, 5000)


def signal(mean: float) -> Metric:
    values = np.random.default_rng(3).normal(mean, 0.1, 1000)
    return mean_metric("drop", "", current=Moments(), difference=Moments().add(values), limit=0.1, role=Role.SIGNAL)


def test_all_within_ships() -> None:
    verdict = judge([GOOD, signal(0.0)], TRAFFIC, SHADOW)
    assert (verdict.decision, verdict.next_share, verdict.more) == (Decision.SHIP, 1.0, None)


def test_a_breached_guardrail_rolls_back_before_anything_else() -> None:
    verdict = judge([BAD], Traffic(10, 50, seconds=0), Rules(ramp=(), least_s=3600))
    assert (verdict.decision, verdict.next_share) == (Decision.ROLL_BACK, 0.0)


def test_a_breached_signal_holds_the_ramp_and_does_not_roll_back() -> None:
    verdict = judge([GOOD, signal(0.5)], TRAFFIC, SHADOW)
    assert (verdict.decision, verdict.next_share, verdict.more) == (Decision.KEEP_GOING, None, None)
    assert "holds the ramp" in verdict.reasons[0]


def test_what_is_open_says_about_how_many_more_requests_decide() -> None:
    verdict = judge([OPEN], Traffic(200, 200), SHADOW)
    assert verdict.decision == Decision.KEEP_GOING
    assert verdict.more is not None
    decided = share_metric("late", Count(200 + verdict.more, 0), limit=0.01, role=Role.GUARDRAIL)
    assert decided.state == State.WITHIN


def test_the_forecast_of_a_mean_decides_it() -> None:
    values = np.random.default_rng(3).normal(0.07, 0.5, 100)
    moments = Moments().add(values)
    metric = mean_metric("drop", "", current=Moments(), difference=moments, limit=0.1, role=Role.SIGNAL)
    assert metric.state == State.OPEN
    assert metric.more is not None
    scale = (100 + metric.more) / 100
    later = Moments(100 + metric.more, moments.mean, moments.squares * scale)
    assert mean_metric("drop", "", current=Moments(), difference=later, limit=0.1, role=Role.SIGNAL).state != State.OPEN


def test_the_ramp_goes_up_step_by_step_and_ships_at_its_end() -> None:
    shares = []
    for step, share in enumerate(RAMP):
        traffic = Traffic(round(5000 * (1 - share) / share), 5000, step=step)
        verdict = judge([GOOD], traffic, Rules())
        shares.append((verdict.decision, verdict.next_share))
    assert shares == [*((Decision.KEEP_GOING, share) for share in RAMP[1:]), (Decision.SHIP, 1.0)]


def test_nothing_goes_up_before_its_time() -> None:
    traffic = Traffic(495_000, 5000, seconds=60)
    verdict = judge([GOOD], traffic, Rules(least_s=3600))
    assert verdict.decision == Decision.KEEP_GOING
    assert verdict.next_share is None
    assert verdict.reasons == ("60 of at least 3600 s",)


@pytest.mark.parametrize(
    ("metrics", "traffic", "message"),
    [
        ([GOOD], Traffic(500, 0), "no request reached the candidate"),
        ([GOOD], Traffic(0, 500), "no request reached the current build"),
        ([GOOD], Traffic(500, 500, is_same_build=True), "the candidate is the current build"),
        ([GOOD], Traffic(5000, 500), "not divided as asked"),
        ([signal(0.0)], Traffic(99_000, 1000), "no guardrail was measured"),
        (
            [replace(GOOD, name="cosine", candidate=math.nan, state=State.UNKNOWN)],
            Traffic(99_000, 1000),
            "cosine is NaN",
        ),
    ],
)
def test_what_makes_figures_worthless_is_unhealthy(metrics: list[Metric], traffic: Traffic, message: str) -> None:
    verdict = judge(metrics, traffic, Rules())
    assert verdict.decision == Decision.UNHEALTHY
    assert message in "; ".join(verdict.reasons)


def test_a_mean_of_nan_is_unknown() -> None:
    values = (1.0, math.nan)
    common = {"role": Role.SIGNAL, "judged": Judged.VALUE, "bounds": Bounds(), "limit": 0.1}
    assert make_metric("cosine", "", values=values, samples=5, **common).state == State.UNKNOWN
    assert make_metric("cosine", "", values=values, samples=0, **common).state == State.OPEN


def test_a_ramp_that_does_not_rise_is_refused() -> None:
    with pytest.raises(DataError, match="ramp"):
        Rules(ramp=(0.5, 0.1))


def test_json_has_all_figures_and_no_infinity() -> None:
    verdict = judge(
        [OPEN, mean_metric("x", "ms", current=Moments(), difference=Moments(), limit=1, role=Role.SIGNAL)],
        TRAFFIC,
        SHADOW,
    )
    value = json.loads(json.dumps(to_json(verdict), allow_nan=False))
    assert value["decision"] == "keep going"
    assert {"role", "current", "candidate", "difference", "bounds", "limit", "samples", "state"} <= set(
        value["metrics"][0]
    )
    assert value["metrics"][1]["bounds"] == {"low": None, "high": None}


def answers(count: int, noise: float = 0.0, *, slow: float = 0.0, seed: int = 5) -> Recording:
    """Scores of ten classes, the right one far ahead, and times of 10 ms of which a share are at 60 ms."""
    scores = np.random.default_rng(1).normal(size=(count, 10)) + 6 * np.eye(10)[np.arange(count) % 10]
    generator = np.random.default_rng(seed)
    scores = scores + noise * generator.normal(size=scores.shape)
    return Recording({"scores": scores}, np.where(generator.random(count) < slow, 60.0, 10.0), "answers.npz")


def test_replay_ships_a_build_that_answers_alike() -> None:
    verdict = replay(answers(2000, 0.01), answers(2000), Limits(latency_ms=50))
    assert verdict.decision == Decision.SHIP
    assert "ship: every limit holds" in verdict_text(verdict)


def test_replay_rolls_back_late_answers_and_other_decisions() -> None:
    late = replay(answers(2000, slow=0.05), answers(2000), Limits(latency_ms=50))
    flipped = replay(answers(2000, 5.0), answers(2000), Limits())
    assert (late.decision, late.reasons) == (Decision.ROLL_BACK, ("later than 50 ms is beyond its limit",))
    assert "decisions flipped is beyond its limit" in flipped.reasons


def test_replay_counts_nan_as_an_error() -> None:
    broken = answers(500)
    scores = broken.outputs["scores"].copy()
    scores[::10, 0] = math.nan
    verdict = replay(Recording({"scores": scores}, None, "broken.npz"), answers(500), Limits())
    assert verdict.reasons == ("errors is beyond its limit",)


def test_replay_of_embeddings_counts_pairs_that_cross_the_threshold() -> None:
    # Pairs of similarity 0.6 and 0.8; the candidate gives 0.8 for one pair in four that had 0.6.
    def embeddings(similarity: np.ndarray) -> Recording:
        second = np.stack([similarity, np.sqrt(1 - similarity**2)], axis=1)
        rows = np.stack([np.tile([1.0, 0.0], (len(similarity), 1)), second], axis=1).reshape(-1, 2)
        return Recording({"embedding": rows}, None, "faces.npz")

    current = np.tile([0.6, 0.8, 0.6, 0.8], 100)
    candidate = np.tile([0.8, 0.8, 0.6, 0.8], 100)
    verdict = replay(embeddings(candidate), embeddings(current), Limits(threshold=0.7))
    flips = next(metric for metric in verdict.metrics if metric.name == "decisions flipped")
    assert (flips.candidate, flips.samples) == (0.25, 400)
    assert verdict.decision == Decision.ROLL_BACK


def test_recordings_of_other_requests_are_refused() -> None:
    with pytest.raises(DataError, match="against"):
        replay(answers(10), answers(20), Limits())


def test_the_command_prints_the_verdict_and_fails_by_a_rollback(tmp_path: Path) -> None:
    for name, recording in (("old", answers(2000)), ("new", answers(2000, 0.01)), ("slow", answers(2000, slow=0.1))):
        assert recording.latency_ms is not None
        np.savez(tmp_path / f"{name}.npz", scores=recording.outputs["scores"], latency_ms=recording.latency_ms)
    command = ["--against", str(tmp_path / "old.npz"), "--latency-ms", "50", "--json"]
    good = CliRunner().invoke(ab, ["replay", str(tmp_path / "new.npz"), *command], catch_exceptions=False)
    assert json.loads(good.output)["decision"] == "ship"
    bad = CliRunner().invoke(ab, ["replay", str(tmp_path / "slow.npz"), *command])
    assert isinstance(bad.exception, GateFailed)


def test_a_recording_of_uneven_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", scores=np.zeros((3, 2)), latency_ms=np.zeros(4))
    result = CliRunner().invoke(ab, ["replay", str(tmp_path / "odd.npz"), "--against", str(tmp_path / "odd.npz")])
    assert isinstance(result.exception, DataError)


def test_one_recording_twice_is_no_comparison(tmp_path: Path) -> None:
    """Outputs may be equal, times of two runs are not: a copy of a recording is found out by them."""
    recording = answers(2000)
    np.savez(tmp_path / "a.npz", scores=recording.outputs["scores"])
    np.savez(tmp_path / "b.npz", scores=recording.outputs["scores"])
    for name in ("timed", "copy"):
        np.savez(tmp_path / f"{name}.npz", scores=recording.outputs["scores"], latency_ms=recording.latency_ms)

    def reasons(first: str, second: str) -> str:
        recordings = (read_recording(tmp_path / f"{name}.npz") for name in (first, second))
        return "; ".join(replay(*recordings, Limits()).reasons)

    assert "the candidate is the current build" in reasons("timed", "copy")
    assert "the candidate is the current build" in reasons("a", "a")
    assert reasons("a", "b") == "every limit holds"


def test_answers_that_come_one_by_one_count_as_all_at_once() -> None:
    """Also pairs of embeddings whose halves come with different requests."""
    generator = np.random.default_rng(2)
    current = generator.normal(size=(301, 4))
    candidate = current + 0.3 * generator.normal(size=current.shape)
    candidate[7] = math.nan
    whole, parts = Answers(0.1), Answers(0.1)
    whole.add({"e": candidate}, {"e": current})
    for start, end in itertools.pairwise([0, 1, 2, 5, 8, 50, 51, 301]):
        parts.add({"e": candidate[start:end]}, {"e": current[start:end]})
    alphas = divide_alpha(2, has_latency=False)
    first, second = (one.metrics(Limits(), alphas) for one in (whole, parts))
    for before, after in zip(first[:2], second[:2], strict=True):
        assert (before.candidate, before.bounds, before.samples) == (after.candidate, after.bounds, after.samples)
    assert first[1].samples == 149
    assert first[2].candidate == pytest.approx(second[2].candidate)
    assert 0 < first[1].candidate < 0.5
