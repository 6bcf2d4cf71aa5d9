"""`fleetc ab`: is a candidate to take the place of the build in use?"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import click

from compiler.artifact.adapter import to_json
from compiler.cli.options import FILE, FOLDER, json_option
from compiler.cli.output import print_json
from compiler.errors import DataError, GateFailed
from rollout.limits import Limits
from rollout.live import Mode, Report, Request, Standing
from rollout.verdict import FEWEST_REQUESTS, Decision, Verdict

PORT = 8000
"""Where `fleetc serve` listens by default."""

POLL_S = 1.0
"""Seconds between two looks of a command that waits for the end."""


class Percent(click.ParamType[float]):
    """A share, with or without its sign: `10%`, `0.5`."""

    name = "percent"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share, above 0 and at most 1."""
        try:
            percent = float(str(value).removesuffix("%"))
        except ValueError:
            self.fail(f"{value!r} is no number of per cent, such as 10%", param, ctx)
        if not 0 < percent <= 100:
            self.fail(f"{value}: give more than 0% and at most 100%", param, ctx)
        return percent / 100


class Similarity(click.ParamType[float]):
    """A threshold: a number, or an artifact whose manifest has it."""

    name = "number or artifact"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The similarity, from -1 to 1."""
        try:
            number = float(str(value))
        except ValueError:
            threshold = _threshold_of(Path(str(value)))
            if threshold is None:
                self.fail(f"{value} was not built for verification: its manifest has no threshold", param, ctx)
            return threshold
        if not -1 <= number <= 1:
            self.fail(f"{value}: give a similarity from -1 to 1", param, ctx)
        return number


PERCENT = Percent()
SIMILARITY = Similarity()
LIMIT_OPTIONS = (
    click.option("--errors-pct", default=1.0, show_default=True, help="Answers that may be no number."),
    click.option("--flips-pct", default=1.0, show_default=True, help="Decisions that may change."),
    click.option(
        "--cosine-drop", default=0.01, show_default=True, type=click.FloatRange(0, 2), help="Mean of 1 - cosine."
    ),
    click.option("--latency-ms", type=click.FloatRange(0, min_open=True), help="What p99 must keep."),
    click.option(
        "--threshold", type=SIMILARITY, help="Similarity that accepts a pair of embeddings, or an artifact that has it."
    ),
)
SERVER_OPTIONS = (
    click.option("--port", default=PORT, show_default=True, help="Where `fleetc serve` listens on this machine."),
    click.option("--model", help="Name of the served model, if there are several."),
)


class Experiments(click.Group):
    """`fleetc ab CANDIDATE …` begins an experiment; the other words are commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the command `begin` before what is no command and no option."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["begin", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Experiments, subcommand_metavar="CANDIDATE --against CURRENT | COMMAND [ARGS]...")
def ab() -> None:
    """Compare a candidate with the build in use: live on a running `fleetc serve`, or from stored answers.

    `fleetc ab CANDIDATE --against CURRENT --shadow 10%` is short for `fleetc ab begin …`.
    """


@ab.command()
@click.argument("candidate", type=FOLDER)
@click.option("--against", required=True, type=FOLDER, help="The artifact that is served.")
@click.option("--shadow", type=PERCENT, help="Requests that the candidate sees too; its answers are thrown away.")
@click.option("--split", type=PERCENT, help="Clients that it answers at first, by the hash of X-Request-Key.")
@click.option("--wait", is_flag=True, help="Wait until it is decided; exit code 5 if it is rolled back.")
@click.option("--least-s", default=0.0, help="Seconds that every step lasts at least.")
@click.option("--least-requests", default=FEWEST_REQUESTS, show_default=True, help="Requests of every step at least.")
@click.option("--median-ms", type=click.FloatRange(0, min_open=True), help="What the median must keep.")
@json_option
def begin(
    candidate: Path,
    against: Path,
    shadow: float | None,
    split: float | None,
    wait: bool,
    least_s: float,
    least_requests: int,
    median_ms: float | None,
    port: int,
    model: str | None,
    as_json: bool,
    errors_pct: float,
    flips_pct: float,
    cosine_drop: float,
    latency_ms: float | None,
    threshold: float | None,
) -> None:
    """Compare CANDIDATE with the artifact that a `fleetc serve` of this machine answers with.

    The limits of time are for --split; by default the server's --slo-ms, and the limit of the build's latency gate.
    The threshold is the fleet's by default, which the manifest of a build for verification has.
    """
    from rollout.client import Client, read_control

    if (shadow is None) == (split is None):
        raise DataError("give one of --shadow and --split", where="fleetc ab", remedy="fleetc ab begin --help")
    digest = _digest(against)
    if threshold is None and (threshold := _threshold_of(against)) is not None:
        click.echo(f"pairs are accepted above {threshold:.4f}, the fleet's threshold in {against}", err=True)
    limits = Limits(errors_pct / 100, flips_pct / 100, cosine_drop, latency_ms, threshold, median_ms)
    mode, share = (Mode.SHADOW, shadow) if shadow is not None else (Mode.SPLIT, split)
    request = Request(str(candidate.absolute()), digest, mode, share or 0.0, limits, least_s, least_requests)
    client = Client(read_control(port), model)
    report = client.begin(request)
    while wait and report.standing == Standing.RUNNING and report.verdict.decision != Decision.SHIP:
        time.sleep(POLL_S)
        report = client.report()
    _show(report, as_json)


@ab.command()
@click.option("--page", type=FILE, help="Also write it as an HTML page.")
@json_option
def verdict(page: Path | None, port: int, model: str | None, as_json: bool) -> None:
    """The verdict of this moment; it may be read at any time."""
    from rollout.client import Client, read_control

    client = Client(read_control(port), model)
    if page is not None:
        page.write_bytes(client.page())
    _show(client.report(), as_json)


@ab.command()
@json_option
def stop(port: int, model: str | None, as_json: bool) -> None:
    """End the experiment; the build in use goes on."""
    from rollout.client import Client, read_control

    _show(Client(read_control(port), model).stop(), as_json)


@ab.command()
@json_option
def ship(port: int, model: str | None, as_json: bool) -> None:
    """Let the candidate answer everybody; the build before stays loaded to go back to."""
    from rollout.client import Client, read_control

    _show(Client(read_control(port), model).ship(), as_json)


@ab.command()
@click.argument("recorded", type=FILE)
@click.option("--against", required=True, type=FILE, help="Answers of the build in use to the same requests, .npz.")
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
    from rollout.replay import read_recording
    from rollout.replay import replay as judge_recordings
    from rollout.text import verdict_text

    limits = Limits(errors_pct / 100, flips_pct / 100, cosine_drop, latency_ms, threshold)
    judged = judge_recordings(read_recording(recorded), read_recording(against), limits)
    print_json(to_json(judged)) if as_json else click.echo(verdict_text(judged))
    _fail_by_rollback(judged, str(recorded))


for command in (begin, replay):
    for option in reversed(LIMIT_OPTIONS):
        option(command)
for command in (begin, verdict, stop, ship):
    for option in reversed(SERVER_OPTIONS):
        option(command)


def _show(report: Report, as_json: bool) -> None:
    from rollout.text import report_text

    print_json(to_json(report)) if as_json else click.echo(report_text(report))
    if report.standing == Standing.ROLLED_BACK:
        _fail_by_rollback(report.verdict, report.candidate)


def _fail_by_rollback(verdict: Verdict, where: str) -> None:
    if verdict.decision == Decision.ROLL_BACK:
        raise GateFailed("; ".join(verdict.reasons), where=where, remedy="Keep the build in use.")


def _threshold_of(folder: Path) -> float | None:
    """The fleet's threshold in an artifact's manifest; None where it has none, or several outputs.

    Of several outputs nothing says which holds the embedding.
    """
    from compiler.artifact.manifest import read_manifest

    manifest = read_manifest(folder)
    return manifest.threshold.similarity if manifest.threshold and len(manifest.artifact.outputs) == 1 else None


def _digest(folder: Path) -> str:
    """SHA-256 of the manifest in a folder."""
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError as error:
        remedy = "Name the folder that is served."
        raise DataError("there is no manifest.json", where=str(folder), remedy=remedy) from error
