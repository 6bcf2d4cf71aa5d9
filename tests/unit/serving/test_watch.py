"""Alert rules and dashboard: every query names what is exported; Prometheus' own tool accepts and fires them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serving.metrics import Metrics, Outcome
from serving.watch import Watched, alert_rules, dashboard

KIOSK = Watched("kiosk", 0.025, "fp32", samples=1000)
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

EVALUATION = {
    "rule_files": ["rules.yaml"],
    "evaluation_interval": "1m",
    "tests": [
        {
            "interval": "1m",
            "input_series": [
                {"series": 'fleetc_requests_total{model="kiosk",outcome="ok"}', "values": "0+100x20"},
                {"series": 'fleetc_requests_total{model="kiosk",outcome="shed"}', "values": "0+10x20"},
                {"series": 'fleetc_build_info{model="kiosk"}', "values": "1x20"},
                {"series": 'fleetc_rung_available{model="kiosk",variant="int8"}', "values": "1x20"},
                {"series": 'fleetc_input_shift{model="kiosk",input="x",statistic="mean"}', "values": "0.3x20"},
                {"series": 'fleetc_request_duration_seconds_bucket{model="kiosk",le="0.025"}', "values": "0+10x20"},
                {"series": 'fleetc_request_duration_seconds_count{model="kiosk"}', "values": "0+100x20"},
            ],
            "alert_rule_test": [
                {
                    "eval_time": "15m",
                    "alertname": name,
                    "exp_alerts": [{"exp_labels": labels, "exp_annotations": notes}],
                }
                for name, labels, notes in (
                    (
                        "FleetcRequestsLost",
                        {"severity": "critical"},
                        {"summary": "9.091% of the requests are late, refused or lost"},
                    ),
                    (
                        "FleetcInputDrift",
                        {"severity": "warning", "model": "kiosk", "input": "x", "statistic": "mean"},
                        {"summary": "x does not look like the calibration data: mean"},
                    ),
                    (
                        "FleetcLatencyGateBreached",
                        {"severity": "critical"},
                        {"summary": "the median is above 25 ms, the limit of the gate that the build passed"},
                    ),
                )
            ]
            + [
                {"eval_time": "15m", "alertname": name, "exp_alerts": []}
                for name in ("FleetcAbsent", "FleetcBuildOut", "FleetcDegraded", "FleetcFlapping", "FleetcOutputDrift")
            ],
        }
    ],
}


SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def exported() -> set[str]:
    """Every name that the exporter can write."""
    return {
        family.name + suffix
        for family in Metrics([0.025]).registry.collect()
        for suffix in SUFFIXES[family.type]
        if family.name.startswith("fleetc_")
    }


def test_every_query_names_what_is_exported() -> None:
    text = json.dumps([alert_rules([KIOSK]), dashboard()])
    used = set(re.findall(r"\b(fleetc_\w+)", text))
    assert used
    assert used <= exported()
    outcomes = re.search(r'outcome=~\\"([\w|]+)', text)
    assert outcomes is not None
    assert set(outcomes[1].split("|")) <= set(Outcome)


def test_the_gates_limit_is_a_bucket() -> None:
    assert 'le="0.025"' in json.dumps(alert_rules([KIOSK])).replace("\\", "")
    metrics = Metrics([0.025])
    metrics.duration.labels("kiosk").observe(0.02)
    assert 'le="0.025"' in metrics.text().decode()


def test_of_few_calibration_samples_more_than_chance_is_an_alarm() -> None:
    rules = {
        rule["alert"]: rule["expr"]
        for rule in alert_rules([Watched("m", None, "fp32", samples=33)])["groups"][0]["rules"]
    }
    assert rules["FleetcInputDrift"] == 'fleetc_input_shift{model="m"} > 1.30'
    assert rules["FleetcOutputDrift"] == 'fleetc_output_shift{model="m"} > 1.30'


@needs_promtool
def test_prometheus_accepts_the_metrics_and_the_rules_and_they_fire(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    metrics = Metrics([0.025])
    metrics.requests.labels("kiosk", "fp32", "ok").inc()
    metrics.duration.labels("kiosk").observe(0.01)
    text = b"\n".join(line for line in metrics.text().split(b"\n") if b"_created" not in line)
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    (tmp_path / "rules.yaml").write_text(json.dumps(alert_rules([KIOSK])))
    (tmp_path / "tests.yaml").write_text(json.dumps(EVALUATION))
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run([PROMTOOL, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
