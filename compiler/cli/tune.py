"""The command that measures: tune, and moving its log between machines."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from compiler.cli.options import FILE, cache_option, child_options, events_option, json_option, limits_of
from compiler.cli.output import Session, print_json
from compiler.cli.text_tuning import tuned_dict, tuned_text
from compiler.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


@click.command()
@click.argument("model", type=FILE, required=False)
@click.option("--profile", "-p", metavar="P", help="What to tune for: a profile, or a device of a fleet file.")
@click.option("--precision", default="", metavar="NAME", help="Precision to tune; the target's first by default.")
@click.option("--backend", type=click.Choice(["host", "rpc", "emulator"]), help="Where: rpc with --tracker, else host.")
@click.option("--tracker", metavar="HOST:PORT", help="TVM's RPC tracker (TVM_TRACKER_HOST and TVM_TRACKER_PORT).")
@click.option("--key", envvar="TVM_TRACKER_KEY", metavar="K", help="The boards' key at the tracker (TVM_TRACKER_KEY).")
@click.option("--trials", type=click.IntRange(min=1), default=64, show_default=True, help="At most, per kernel.")
@click.option(
    "--plateau", type=click.IntRange(min=1), default=12, show_default=True, help="Trials in a row without a better one."
)
@click.option("--budget", default="", metavar="TIME", help="Wall time in all: 90s, 10m, 2h; none by default.")
@click.option(
    "--trial-timeout",
    help="Wall time of one trial.",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
)
@click.option("--retry", is_flag=True, help="Run trials again that failed before.")
@click.option("--export", "export_to", type=FILE, metavar="FILE", help="Write all records into FILE (after tuning).")
@click.option("--import", "import_from", type=FILE, metavar="FILE", help="Take the records of FILE (before tuning).")
@child_options
@cache_option
@json_option
@events_option
@click.pass_obj
def tune(session: Session, /, model: Path | None, as_json: bool, cache: Path, **options: Any) -> None:
    """Measure the choices of MODEL's kernels (ONNX or a fleet file) and remember them per type of device."""
    from compiler.driver.stages.kernels import tuning_log

    if model is None and not (options["export_to"] or options["import_from"]):
        raise UsageError("there is no model", where="fleetc tune", remedy="Name an ONNX or a fleet file.")
    value: dict[str, Any] = {}
    log = tuning_log(cache)
    if options["import_from"]:
        value["imported"] = log.import_(options["import_from"])
    if model is not None:
        value |= _tuned(session, model, cache, options)
    if options["export_to"]:
        value["exported"] = log.export(options["export_to"])
    if as_json:
        print_json(value)
        return
    for name in ("imported", "exported"):
        if name in value:
            click.echo(f"{value[name]} records {name}")


def _tuned(session: Session, model: Path, cache: Path, options: dict[str, Any]) -> dict[str, Any]:
    from compiler.driver.tune_kernels import TuneOptions, tune_model
    from compiler.target import Backend
    from compiler.tune import Budget

    if not options["profile"]:
        raise UsageError("there is no profile", where="--profile", remedy="`fleetc profiles list` shows some.")
    tracker = options["tracker"] or _tracker_of_environment()
    kind = options["backend"] or ("rpc" if options["tracker"] else "host")
    _refuse_mix(kind, tracker, options)
    report = tune_model(
        TuneOptions(
            model,
            options["profile"],
            options["precision"],
            Backend(kind, tracker if kind == "rpc" else "", options["key"] or "", options["trial_timeout"]),
            Budget(options["trials"], options["plateau"], _seconds(options["budget"]), options["retry"]),
            cache,
            limits_of(options),
        ),
        events=session.sink,
    )
    if not session.as_json:
        click.echo(tuned_text(report))
    return tuned_dict(report)


def _refuse_mix(kind: str, tracker: str, options: dict[str, Any]) -> None:
    if kind != "rpc" and options["tracker"]:
        raise UsageError(f"--tracker is for boards, not for {kind}", where="--backend", remedy="Leave one out.")
    if kind == "rpc" and not (tracker and options["key"]):
        raise UsageError(
            "a board is measured through a tracker, under a key",
            where="--backend rpc",
            remedy="Give --tracker HOST:PORT and --key K, or TVM_TRACKER_HOST, TVM_TRACKER_PORT and TVM_TRACKER_KEY.",
        )
    if tracker and kind == "rpc" and not re.fullmatch(r"\[?[\w.:-]+\]?:[0-9]{1,5}", tracker):
        raise UsageError(f"'{tracker}' is no HOST:PORT", where="--tracker", remedy="For example --tracker lab:9190.")


def _tracker_of_environment() -> str:
    host, port = os.environ.get("TVM_TRACKER_HOST", ""), os.environ.get("TVM_TRACKER_PORT", "9190")
    return f"{host}:{port}" if host else ""


def _seconds(text: str) -> float | None:
    if not text:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text)
    if not match or float(match[1]) == 0:
        raise UsageError(f"'{text}' is no time", where="--budget", remedy="For example --budget 10m.")
    return float(match[1]) * _UNITS_S[match[2] or "s"]
