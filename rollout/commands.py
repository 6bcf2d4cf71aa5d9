"""`fleetc ab`: is a candidate to take the place of the build in use?"""

from __future__ import annotations

from pathlib import Path

import click

from compiler.artifact.adapter import to_json
from compiler.cli.options import FILE, json_option
from compiler.cli.output import print_json
from compiler.errors import GateFailed

SHARE_PCT = click.FloatRange(0, 100, min_open=True, max_open=True)


@click.group()
def ab() -> None:
    """Compare a candidate with the build in use."""


@ab.command()
@click.argument("recorded", type=FILE)
@click.option("--against", required=True, type=FILE, help="Answers of the build in use to the same requests, .npz.")
@click.option("--errors-pct", default=1.0, show_default=True, type=SHARE_PCT, help="Answers that may be no number.")
@click.option("--flips-pct", default=1.0, show_default=True, type=SHARE_PCT, help="Decisions that may change.")
@click.option("--cosine-drop", default=0.01, show_default=True, type=click.FloatRange(0, 2), help="Mean of 1 - cosine.")
@click.option("--latency-ms", type=click.FloatRange(0, min_open=True), help="What p99 must keep.")
@click.option("--threshold", type=click.FloatRange(-1, 1), help="Similarity that accepts a pair of embeddings.")
@json_option
def replay(
    recorded: Path,
    against: Path,
    errors_pct: float,
    flips_pct: float,
    cosine_drop: float,
    latency_ms: float | None,
    threshold: float | None,
    as_json: bool,
) -> None:
    """The verdict on RECORDED, a candidate's stored answers (.npz, one row a request, `latency_ms` if measured)."""
    from rollout.replay import Limits, read_recording
    from rollout.replay import replay as judge_recordings
    from rollout.text import verdict_text
    from rollout.verdict import Decision

    limits = Limits(errors_pct / 100, flips_pct / 100, cosine_drop, latency_ms, threshold)
    candidate, current = read_recording(recorded), read_recording(against)
    verdict = judge_recordings(candidate, current, limits)
    print_json(to_json(verdict)) if as_json else click.echo(verdict_text(verdict))
    if verdict.decision == Decision.ROLL_BACK:
        raise GateFailed("; ".join(verdict.reasons), where=str(recorded), remedy="Keep the build in use.")
