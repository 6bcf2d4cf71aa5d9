"""Builds on disk as `fleetc build` writes them, with figures that a test may change."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compiler.artifact.manifest import SCHEMA
from compiler.store import file_digest

MIB = 1 << 20
DIFFERENCE = {"elements": 4, "sqnr_db": 40.0, "cosine": 1.0, "worst_abs": 0.1, "worst_index": [0]}


def gate(name: str = "accuracy", **changes: Any) -> dict[str, Any]:
    facts = {"limit": 2.0, "value": 1.0, "unit": "points lost", "passed": True, "evidence": "measured-host"}
    return {"name": name, "rule": "point", "why": "", **facts, **changes}


def trial(number: int, precision: str, **changes: Any) -> dict[str, Any]:
    score = {"metric": "TAR@FAR=0.001", "value_pct": 90.0, "low_pct": 85.0, "high_pct": 94.0, "count": 100}
    facts = {
        "number": number,
        "purpose": "candidate",
        "precision": precision,
        "status": "passed",
        "why": "",
        "pruned": 0.0,
        "kept_float": {},
        "accuracy": {
            "drop": {
                "metric": "TAR@FAR=0.001",
                "drop_pct": 0.5 * (number - 1),
                "low_pct": -0.5,
                "high_pct": 1.5,
                "reference": score,
                "candidate": score,
                "rule": "point",
                "judged_pct": 0.5 * (number - 1),
                "why": "",
            },
            "evidence": "measured-host",
            "measured_on": "artifact",
        },
        "footprint": {
            "weights_bytes": 20 * MIB // number,
            "weights_evidence": "measured-host",
            "run_bytes": 50 * MIB // number,
            "run_evidence": "measured-host",
            "why": "",
        },
        "speed": {
            "speedup": float(number),
            "value": 8 / number,
            "original": 8.0,
            "unit": "ms",
            "evidence": "measured-host",
        },
        "gates": [gate()],
        "options": None,
        "saliency": None,
        "warnings": [],
        "note": "",
        "stages": [],
    }
    return {**facts, **changes}


def layer(node: str, **changes: Any) -> dict[str, Any]:
    facts = {"op": "Conv", "precision": "int8", "why": "in the scheme", "sqnr_db": 31.5, "share": 0.5}
    return {"node": node, "origin": [node], "evidence": "measured-host", "kernel": "gemm", **facts, **changes}


def searched(**changes: Any) -> dict[str, Any]:
    """What delivered and refused devices share."""
    facts = {
        "plan": {
            "device": "kiosk",
            "profile": "board",
            "profile_digest": "2" * 64,
            "target": "reference",
            "dims": {},
            "candidates": [{"precision": "int8", "reason": "it is the fastest"}],
            "toolchain": {"onnxruntime": "1.32.0"},
            "passes": [],
            "target_passes": [],
            "decisions": {"precision": {"value": "int8", "reason": "it is the fastest"}},
            "target_options": {},
            "target_plan": {"precision": "int8", "dims": {}, "threads": 1, "schedule": {}, "payload_bytes": None},
            "gates": {"limits": {"accuracy_drop_pct": 2.0, "memory_reduction_pct": 40.0}, "reasons": {}},
        },
        "decision": {"precision": "int8", "trial": 2, "reason": "the search chose it"},
        "gates": [gate(), gate("memory: run", unit="% less", limit=40.0, value=None, passed=None, why="no runner")],
        "trials": [trial(1, "fp32"), trial(2, "int8")],
        "layers": [layer("first"), layer("second", precision="fp32", sqnr_db=None)],
        "saliency": None,
    }
    return {**facts, **changes}


def competitor(target: str, standing: str, speedup: float | None = None) -> dict[str, Any]:
    """A target that competed; with a speed where it was raced."""
    race = {"speedup": speedup, "value": 1.0, "original": speedup, "unit": "ms", "evidence": "measured-host"}
    why = f"{speedup} × the speed of the first" if speedup else "the others are measured against its first build"
    return {"target": target, "standing": standing, "why": why, "race": race if speedup else None, "trial": None}


def kernel(name: str, **changes: Any) -> dict[str, Any]:
    facts = {"workload": "6" * 64, "count": 2, "choice": {"tile": 4}, "basis": "measured", "evidence": "measured-host"}
    return {"kernel": name, "reason": "33.3 us, 3 runs, measured-host, 2026-11-24", **facts, **changes}


def manifest(name: str, **changes: Any) -> dict[str, Any]:
    counts = {"nodes": 10, "parameters": 100, "bytes": 400, "macs": 1000}
    record = {"number": 1, "name": "fold", "modified": True, "before": counts, "after": {**counts, "nodes": 7}}
    facts = {
        "schema": SCHEMA,
        "fleetc": "0.1.0",
        "device": name,
        "inputs": {
            "model": {"file": "face.onnx", "sha256": "0" * 64, "notes": []},
            "samples": {"origin": "faces.npz", "sha256": "1" * 64, "warnings": []},
            "profile": {"name": "board", "sha256": "2" * 64, "facts": {}},
            "evaluation": None,
        },
        "source": counts,
        "border": {**counts, "nodes": 7, "sha256": "3" * 64},
        "passes": [{**record, "largest_difference": 1e-6, "sqnr_db": 120.0, "not_measured": "", "notes": []}],
        "stages": [],
        "pruning": None,
        "verdict": {
            "reference": "imported model",
            "parity": {
                "status": "passed",
                "tolerance": "fp16",
                "evidence": "measured-host",
                "reason": "",
                "points": [
                    {
                        "sizes": "fixed",
                        "outputs": {"y": DIFFERENCE},
                    }
                ],
            },
        },
        "artifact": {
            "target": "reference",
            "precision": "int8",
            "inputs": [],
            "outputs": [],
            "files": ["payload/model.onnx"],
            "tools": {"onnxruntime": "1.32.0"},
            "facts": {},
            "non_reproducible": {},
            "deferred": "",
        },
        "files": {"payload/model.onnx": {"sha256": "4" * 64, "bytes": 10 * MIB}},
        "tuning": [kernel("conv 3x3"), kernel("gemm", basis="predicted", evidence="none")],
        **searched(),
    }
    return {**facts, **changes}


def saliency(**changes: Any) -> dict[str, Any]:
    """A comparison of maps with one picture, of 8 × 8 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    rows = [[0.1, 0.2, 0.3], [0.0, 1.0, -0.5], [0.0, 0.0, 0.2]]
    shown = {"png": base64.b64encode(file.getvalue()).decode(), "original": rows, "build": rows, "correlation": 0.97}
    facts = {"correlation": 0.95, "lowest_correlation": 0.91, "compared": 6, "images": 6, "score": "the score"}
    where = {"measured_on": "artifact", "evidence": "measured-host", "note": "on the build"}
    return {"shown": [shown], **facts, **where, **changes}


def measurements(p50_ms: float = 4.0) -> dict[str, Any]:
    times = {"p50_ms": p50_ms, "p90_ms": p50_ms + 1, "p99_ms": p50_ms + 2, "items_per_s": 1000 / p50_ms}
    return {
        "schema": SCHEMA,
        "evidence": "measured-host",
        "instructions": None,
        "latency": [{"sizes": "fixed", "runs": 20, **times}],
        "passes_ms": [["fold", 1.5]],
        "seconds": {"build": 1.0},
        "non_reproducible_files": {},
        "tuning": [
            {
                "kernel": "conv 3x3",
                "count": 2,
                "unit": "us",
                "evidence": "measured-host",
                "values": [100.0, None, 60.0],
            },
            {"kernel": "conv 1x1", "count": 1, "unit": "us", "evidence": "measured-host", "values": [None, 50.0, 45.0]},
        ],
    }


def failure(**changes: Any) -> dict[str, Any]:
    error = {"error": "GateFailed", "exit_code": 5, "what": "no candidate passes", "where": "", "remedy": "Relax it."}
    return {"status": "failed", "error": {**error, **changes}}


def write_dist(
    folder: Path,
    delivered: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, Mapping[str, Any]] | None = None,
    p50_ms: float = 4.0,
) -> Path:
    """Writes manifests, measurements and build.json."""
    rows: dict[str, Any] = dict(failed or {})
    for name, facts in delivered.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "manifest.json").write_text(json.dumps(facts))
        (place / "measurements.json").write_text(json.dumps(measurements(p50_ms)))
        rows[name] = {"status": "delivered", "manifest": file_digest(place / "manifest.json")}
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"schema": SCHEMA, "fleetc": "0.1.0", "fleet": "fleet.yaml", "model": "0" * 64, "devices": rows}
    (folder / "build.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """One delivered device, one refused with trials, one that failed before anything was tried."""
    refused = {**failure(), "report": searched(decision={"precision": "", "trial": None, "reason": "none passes"})}
    failed = {"refused": refused, "broken": failure(error="ToolchainFailed", exit_code=4, what="no compiler")}
    return write_dist(tmp_path / "dist", {"kiosk": manifest("kiosk")}, failed)
