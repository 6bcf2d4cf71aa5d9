"""What `fleetc build` chooses for this machine and the face model, for bench_precision.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLEETC = str(Path(sys.executable).with_name("fleetc"))
SAMPLES = 64
FAR = 1e-3
KEPT_PCT = 99.0
"""Of the metric, in the scenario that asks for 40 → 100 images a second."""

Figures = dict[str, Any]


def face_fleet(model: Path, faces: Path, scratch: Path) -> Figures:
    """This machine under two names, as a fleet with the default limits of an evaluation."""
    subprocess.run([FLEETC, "profiles", "detect", "-o", str(scratch / "here.yaml")], check=True)
    text = (scratch / "here.yaml").read_text(encoding="utf-8")
    (scratch / "twin.yaml").write_text(text.replace("\nname: ", "\nname: twin-"), encoding="utf-8")
    return {
        "schema": 1,
        "model": str(model),
        "calibration": {"path": str(faces), "samples": SAMPLES},
        "evaluation": {"task": "verification", "path": str(faces), "far": [FAR]},
        "preprocess": {"margin_pct": 10},
        "devices": {"here": {"profile": "./here.yaml"}, "twin": {"profile": "./twin.yaml"}},
    }


def search(fleet: Figures, scratch: Path) -> Figures:
    """The whole search for this machine from an empty store, then for a second device class with the same scheme."""
    (scratch / "fleet.yaml").write_text(json.dumps(fleet), encoding="utf-8")
    first, second = (_build(scratch, device) for device in ("here", "twin"))
    manifest = json.loads((scratch / "dist" / "here" / "manifest.json").read_text(encoding="utf-8"))
    return {
        "first_device_s": first,
        "second_device_of_the_same_scheme_s": second,
        "decision": manifest["decision"],
        "gates": manifest["gates"],
        "trials": _trials(manifest["trials"]),
    }


def strict_search(fleet: Figures, scratch: Path) -> Figures:
    """The search with a hundredth of the float model's metric as its limit, judged by the drop itself."""
    manifest = json.loads((scratch / "dist" / "here" / "manifest.json").read_text(encoding="utf-8"))
    drops = [trial["accuracy"]["drop"] for trial in manifest["trials"] if trial["accuracy"]]
    metric = next(drop["reference"]["value_pct"] for drop in drops if drop)
    limit = metric * (1 - KEPT_PCT / 100)
    strict = fleet | {
        "evaluation": fleet["evaluation"] | {"rule": "point"},
        "limits": {"accuracy_drop_pct": limit},
        "devices": {"strict": {"profile": "./here.yaml"}},
    }
    (scratch / "fleet.yaml").write_text(json.dumps(strict), encoding="utf-8")
    seconds = _build(scratch, "strict", out="strict", check=False)
    row = json.loads((scratch / "strict" / "build.json").read_text(encoding="utf-8"))["devices"]["strict"]
    found: Figures = {"limit_points": round(limit, 3), "seconds": seconds, "built": row["status"] == "delivered"}
    if not found["built"]:
        return found | {"why": row["error"]["what"], "trials": _trials(row["report"]["trials"])}
    chosen = json.loads((scratch / "strict" / "strict" / "manifest.json").read_text(encoding="utf-8"))
    return found | {"decision": chosen["decision"], "trials": _trials(chosen["trials"])}


def _trials(trials: Sequence[Figures]) -> list[Figures]:
    return [
        {key: trial[key] for key in ("number", "purpose", "precision", "status", "why", "note", "speed", "footprint")}
        | {"drop_pct": _drop_pct(trial), "layers_in_float": len(trial["kept_float"])}
        for trial in trials
    ]


def _drop_pct(trial: Figures) -> float | None:
    drop = (trial["accuracy"] or {}).get("drop")
    return drop["drop_pct"] if drop else None


def _build(scratch: Path, device: str, *, out: str = "dist", check: bool = True) -> float:
    started = time.perf_counter()
    command = [FLEETC, "-q", "build", "fleet.yaml", "-d", device, "--cache", "cache", "-o", out]
    subprocess.run(command, cwd=scratch, check=check, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 1)
