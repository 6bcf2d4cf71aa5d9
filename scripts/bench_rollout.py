"""How often a verdict that is read after every request is wrong, and after how many requests a bad build is called.

python scripts/bench_rollout.py --out benchmarks/rollout.json

Without options it is simulated from fixed seeds: figures are counts, and the same on every machine.
- A/A: two builds that are the same. The bounds of the mean difference leave out zero at some moment; beside it a
  naive 95 % interval.
- A/A at the limit: late, wrong and failed answers as often as the limit allows; a guardrail is breached at some moment.
- Late answers: shares above the p99 limit of 2, 3 and 5 %; after how many requests the guardrail is breached.

With --fleet, on real files and processes: 200 agents on the loopback get a build of which 5 % of the requests are late;
and agents and the controller are killed 100 times at random moments of a rollout.

With --serve ARTIFACT CANDIDATE, two builds of one model: how p99 changes while a tenth of the requests is mirrored.

With --faces ARTIFACT CANDIDATE, two builds of a face model whose fleet is judged by verification: the verdict on
photographs, one folder per person, that --photographs or FLEETC_FACES names.

Figures that are not asked for stay as the record has them, each with the commit it was measured at.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import rollout_faces
import rollout_fleet
import rollout_mirror
from bench_record import bar, commit, machine, versions
from numpy.typing import NDArray

from rollout.bounds import ALPHA
from rollout.limits import divide_alpha
from rollout.means import FEWEST, half_width
from rollout.shares import Count, exceeds

SEED, RUNS, PAIRS, REQUESTS = 16, 1000, 2000, 6000
LIMIT = 0.01
GUARDRAILS = 3
"""Errors, other decisions, late answers."""

Hits = NDArray[np.int64]


def main() -> None:
    """Simulate, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the record is written")
    parser.add_argument("--fleet", action="store_true", help="also roll out to 200 agents, and kill")
    parser.add_argument("--serve", type=Path, nargs=2, metavar=("ARTIFACT", "CANDIDATE"), help="also mirror requests")
    parser.add_argument("--faces", type=Path, nargs=2, metavar=("ARTIFACT", "CANDIDATE"), help="also judge on faces")
    parser.add_argument("--photographs", type=Path, default=os.environ.get("FLEETC_FACES"), help="for --faces")
    arguments = parser.parse_args()
    if arguments.faces and not arguments.photographs:
        parser.error("--faces needs photographs: --photographs FOLDER, or FLEETC_FACES")
    os.nice(5)
    begin = time.process_time()
    measured = measure(arguments)
    recorded = json.loads(arguments.out.read_text("utf-8")) if arguments.out and arguments.out.exists() else {}
    kept = {part: recorded[part] for part in PARTS if part in recorded and part not in measured}
    figures, now = measured | kept, commit()
    record = {
        **now,
        "commits": {part: now["commit"] for part in measured}
        | {part: recorded.get("commits", {}).get(part, recorded["commit"]) for part in kept},
        "machine": machine(),
        "versions": versions(["numpy"]),
        "seed": SEED,
        "runs": RUNS,
        **figures,
        "cpu_s": round(time.process_time() - begin, 1),
        "bars": bars(figures),
    }
    text = json.dumps(record, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text)


PARTS = ("fleet", "kills", "mirrored", "faces")
"""Figures that are measured where they are asked for; otherwise the record keeps those that it has."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is simulated always, and what was asked for."""
    figures: dict[str, Any] = {"means": same_means(), "guardrails": same_shares(), "late": late()}
    if arguments.fleet:
        figures |= {"fleet": rollout_fleet.breaching(), "kills": rollout_fleet.killing()}
    if arguments.serve:
        figures["mirrored"] = rollout_mirror.mirrored(*arguments.serve)
    if arguments.faces:
        current, candidate = arguments.faces
        figures["faces"] = rollout_faces.faces(current, candidate, Path(arguments.photographs))
    return figures


def bars(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures that must hold."""
    wrong, three = "share of A/A runs with a false verdict", "median_requests_of_three_guardrails"
    fleet, kills, mirrored, faces = (figures.get(part) for part in PARTS)
    bars = [
        bar(f"{wrong}: means", figures["means"]["wrong_share"], ALPHA),
        bar(f"{wrong}: guardrails", figures["guardrails"]["wrong_share"], ALPHA),
        *(
            bar(f"median requests until {share} late answers are called, {what}", figures["late"][share][key], limit)
            for share, limit in (("2 %", 1000), ("3 %", 250))
            for what, key in (("alone", "median_requests"), ("one of three guardrails", three))
        ),
    ]
    if fleet:
        bars += [
            bar("devices beyond the first group that got a build with 5 % late", fleet["beyond_first_group"], 0),
            bar("devices that are not back on the build before", fleet["not_back"], 0),
        ]
    if kills:
        bars += [
            bar(
                "of the kills that were asked for, those that were not made",
                kills["asked"] - sum(kills["kills"].values()),
                0,
            ),
            bar("devices without exactly one verified build after a kill", kills["without_verified_build"], 0),
        ]
    if mirrored:
        bars.append(bar("% by which mirroring raises p99, round by round", mirrored["p99"]["median_change_pct"], 5))
    if faces:
        what = f"{faces['precisions'][1]} against {faces['precisions'][0]} on faces: another verdict than ship"
        bars.append(bar(what, float(faces["verdict"] != "ship"), 0))
    return bars


def same_means() -> dict[str, Any]:
    """Pairs of one distribution, read after every pair from the fiftieth on."""
    first, second = np.random.default_rng(SEED).normal(size=(2, RUNS, PAIRS))
    counts = np.arange(1, PAIRS + 1)
    sums, squares = np.cumsum(first - second, axis=1), np.cumsum((first - second) ** 2, axis=1)
    means = (sums / counts)[:, FEWEST - 1 :]
    deviations = np.sqrt((squares / counts)[:, FEWEST - 1 :] - means**2)
    read = counts[FEWEST - 1 :]
    return {
        "pairs": PAIRS,
        "wrong_share": share(np.abs(means) > deviations * half_width(read)),
        "wrong_share_naive": share(np.abs(means) > 1.96 * deviations / np.sqrt(read)),
    }


def same_shares() -> dict[str, Any]:
    """Every guardrail at its limit; they share alpha, as in a verdict."""
    alphas = divide_alpha(GUARDRAILS - 1, has_latency=True)
    generator = np.random.default_rng(SEED)
    breached = [
        (draw(generator, LIMIT) >= deciding_hits(alpha)).any(axis=1) for alpha in (alphas.late, *[alphas.other] * 2)
    ]
    return {"requests": REQUESTS, "guardrails": GUARDRAILS, "wrong_share": float(np.mean(np.any(breached, axis=0)))}


def late() -> dict[str, Any]:
    """Requests until the guardrail is breached, it alone and as one of several."""
    generator = np.random.default_rng(SEED)
    alphas = (ALPHA, divide_alpha(GUARDRAILS - 1, has_latency=True).late)
    rows: dict[str, Any] = {}
    for percent in (2, 3, 5):
        hits = draw(generator, percent / 100)
        alone, shared = (first_call(hits, deciding_hits(alpha)) for alpha in alphas)
        rows[f"{percent} %"] = {
            "median_requests": float(np.median(alone)),
            "p90_requests": float(np.quantile(alone, 0.9)),
        }
        rows[f"{percent} %"]["median_requests_of_three_guardrails"] = float(np.median(shared))
    return rows


def draw(generator: np.random.Generator, probability: float) -> Hits:
    """Hits after each request of each run."""
    return (generator.random((RUNS, REQUESTS)) < probability).cumsum(axis=1)


def deciding_hits(alpha: float) -> Hits:
    """The fewest hits that breach the limit after each number of requests: more hits are more evidence."""
    deciding, hits = np.empty(REQUESTS, np.int64), 0
    for index in range(REQUESTS):
        total = index + 1
        while hits <= total and not exceeds(Count(total, hits), LIMIT, alpha=alpha):
            hits += 1
        deciding[index] = hits
    return deciding


def first_call(hits: Hits, deciding: Hits) -> NDArray[np.float64]:
    """Requests until each run is called; infinite for one that never is."""
    called = hits >= deciding
    return np.where(called.any(axis=1), called.argmax(axis=1) + 1.0, np.inf)


def share(wrong: NDArray[np.bool_]) -> float:
    """Share of runs with a wrong moment."""
    return float(wrong.any(axis=1).mean())


if __name__ == "__main__":
    main()
