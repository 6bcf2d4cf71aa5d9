"""Alert rules for Prometheus and a dashboard for Grafana, with the limits that the served builds were judged by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from serving.builds import Served, read_builds
from serving.drift import MOVED, least_shift

RULES, DASHBOARD = "fleetc-rules.yaml", "fleetc-dashboard.json"

OUTSIDE = 0.01
"""Share of an input's elements outside of the calibration data's range that is worth a look."""

ENOUGH = 250
"""Calibration samples of which the usual index is no chance."""

LOST = 0.01
"""Share of requests that are late, refused or lost."""

SCHEMA_VERSION = 39
"""Of Grafana's dashboards: what Grafana 11 writes."""


@dataclass(frozen=True)
class Watched:
    """A served model.

    Args:
        model: Its name.
        latency_s: The latency limit of its gate; None where there is none.
        top: Its most accurate build.
        samples: Calibration samples that requests are compared with; 0 where they are compared with none.
    """

    model: str
    latency_s: float | None
    top: str
    samples: int = 0


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "-o", "--out", default=Path(), type=click.Path(path_type=Path, file_okay=False), help="Folder to write to."
)
def watch(artifacts: tuple[Path, ...], out: Path) -> None:
    """Write alert rules and a dashboard for ARTIFACTS, each served under its folder's name."""
    models = [_watched(folder.resolve().name, read_builds([folder])) for folder in artifacts]
    out.mkdir(parents=True, exist_ok=True)
    # JSON is YAML, too: the file needs no other writer, and Prometheus reads it
    (out / RULES).write_text(json.dumps(alert_rules(models), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / DASHBOARD).write_text(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for model in models:
        if model.samples and (least := least_shift(model.samples)) > MOVED:
            few = f"{model.model}: of {model.samples} calibration samples only a shift beyond {least:.2f} is no chance"
            click.echo(f"{few}; {ENOUGH} tell {MOVED}", err=True)
    click.echo(f"{out / RULES}\n{out / DASHBOARD}")


def _watched(name: str, served: Served) -> Watched:
    top = served.builds[0]
    limits = [gate.limit / 1e3 for gate in top.gates if gate.name == "latency"]
    return Watched(name, limits[0] if limits else None, top.name, served.drift.samples if served.drift else 0)


def alert_rules(models: Sequence[Watched]) -> dict[str, Any]:
    """A rule file: one group a model."""
    return {"groups": [{"name": f"fleetc-{model.model}", "rules": list(_rules(model))} for model in models]}


def _rules(watched: Watched) -> list[dict[str, Any]]:
    model = f'model="{watched.model}"'
    moved = f"{least_shift(watched.samples):.2f}"
    lost = f'sum(rate(fleetc_requests_total{{{model},outcome=~"late|shed|error"}}[5m]))'
    rules = [
        _rule("FleetcAbsent", f"absent(fleetc_build_info{{{model}}})", "1m", "critical", "nobody serves the model"),
        _rule(
            "FleetcRequestsLost",
            f"{lost} / sum(rate(fleetc_requests_total{{{model}}}[5m])) > {LOST}",
            "2m",
            "critical",
            "{{ $value | humanizePercentage }} of the requests are late, refused or lost",
        ),
        _rule(
            "FleetcDegraded",
            f'avg_over_time(fleetc_rung{{{model},variant="{watched.top}"}}[10m]) < 0.5',
            "5m",
            "warning",
            "a cheaper build answers most of the time: the device is too slow for the load",
        ),
        _rule(
            "FleetcBuildOut",
            f"fleetc_rung_available{{{model}}} == 0",
            "5m",
            "warning",
            "the build {{ $labels.variant }} cannot be used",
        ),
        _rule(
            "FleetcFlapping",
            f"sum(rate(fleetc_switches_total{{{model}}}[5m])) > 1",
            "5m",
            "warning",
            "the build in use changes more than once a second",
        ),
        _rule(
            "FleetcInputOutOfRange",
            f"fleetc_input_out_of_range_ratio{{{model}}} > {OUTSIDE}",
            "5m",
            "warning",
            "{{ $value | humanizePercentage }} of {{ $labels.input }} lies outside of the calibration data's range",
        ),
        _rule(
            "FleetcInputDrift",
            f"fleetc_input_shift{{{model}}} > {moved}",
            "5m",
            "warning",
            "{{ $labels.input }} does not look like the calibration data: {{ $labels.statistic }}",
        ),
        _rule(
            "FleetcOutputDrift",
            f"fleetc_output_shift{{{model}}} > {moved}",
            "5m",
            "warning",
            "{{ $labels.output }} does not look like on the calibration data: {{ $labels.statistic }}",
        ),
    ]
    if watched.latency_s is not None:
        bucket = f'sum(rate(fleetc_request_duration_seconds_bucket{{{model},le="{watched.latency_s}"}}[5m]))'
        count = f"sum(rate(fleetc_request_duration_seconds_count{{{model}}}[5m]))"
        rules.append(
            _rule(
                "FleetcLatencyGateBreached",
                f"1 - {bucket} / {count} > 0.5",
                "5m",
                "critical",
                f"the median is above {watched.latency_s * 1e3:g} ms, the limit of the gate that the build passed",
            )
        )
    return rules


def _rule(name: str, expr: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expr,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


PANELS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    (
        "Requests a second, by outcome",
        "reqps",
        {"{{outcome}}": 'sum by (outcome) (rate(fleetc_requests_total{model="$model"}[$__rate_interval]))'},
    ),
    (
        "Latency",
        "s",
        {
            f"p{quantile * 100:g}": f"histogram_quantile({quantile}, sum by (le) "
            '(rate(fleetc_request_duration_seconds_bucket{model="$model"}[$__rate_interval])))'
            for quantile in (0.5, 0.95, 0.99)
        }
        | {"SLO": 'fleetc_slo_seconds{model="$model"}'},
    ),
    ("Build in use", "short", {"{{variant}}": 'fleetc_rung{model="$model"}'}),
    (
        "Switches a second, by reason",
        "short",
        {"{{reason}}": 'sum by (reason) (rate(fleetc_switches_total{model="$model"}[$__rate_interval]))'},
    ),
    (
        "Queue, and size of batches",
        "short",
        {
            "waiting or run": 'fleetc_pending_requests{model="$model"}',
            "mean batch": 'rate(fleetc_batch_size_sum{model="$model"}[$__rate_interval]) '
            '/ rate(fleetc_batch_size_count{model="$model"}[$__rate_interval])',
        },
    ),
    ("Memory of the builds", "bytes", {"{{variant}}": 'fleetc_build_resident_memory_bytes{model="$model"}'}),
    (
        "Gates: figure of the build over its limit",
        "percentunit",
        {"{{variant}} {{gate}}": 'fleetc_gate_observed{model="$model"} / fleetc_gate_limit{model="$model"}'},
    ),
    (
        "Drift: population stability index",
        "short",
        {
            "{{input}} {{statistic}}": 'fleetc_input_shift{model="$model"}',
            "{{output}} {{statistic}}": 'fleetc_output_shift{model="$model"}',
        },
    ),
    ("Inputs out of range", "percentunit", {"{{input}}": 'fleetc_input_out_of_range_ratio{model="$model"}'}),
    (
        "Runs against their prediction",
        "short",
        {
            "p50": "histogram_quantile(0.5, sum by (le) "
            '(rate(fleetc_prediction_ratio_bucket{model="$model"}[$__rate_interval])))'
        },
    ),
)
"""Title, unit, and legend → query of each panel."""


def dashboard() -> dict[str, Any]:
    """A Grafana dashboard with a variable for the data source and one for the model."""
    return {
        "title": "fleetc",
        "uid": "fleetc-serve",
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(fleetc_build_info, model)",
                    "refresh": 2,
                },
            ]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, queries: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expr, "legendFormat": legend}
            for place, (legend, expr) in enumerate(queries.items())
        ],
    }
