#!/usr/bin/env python3
"""Differential fuzzing: random ONNX graphs through every pass and every target, against two oracles.

scripts/fuzz_models.py --graphs 10000                      passes alone, together, half precision and pruning
scripts/fuzz_models.py --targets reference,openvino:int8   targets too, at fp32 or the precision behind the colon
scripts/fuzz_models.py --output FIGURES.json --resume  the seeds that it has not judged yet, or judged with a failure
scripts/fuzz_models.py --replay failures/FILE.onnx         one saved failure again, on the check that failed

Graphs are drawn from the seed, in batches. Each batch runs in a child process: one that crashes, or that takes longer
than --graph-seconds for a graph, is a failure with the graph it was at. The oracles are ONNX Runtime without
optimizations and ONNX's own evaluator; nodes that they refuse or disagree on are left out and counted.
Figures are written after every batch, so a run that is killed still counts. A batch that ends with a failure counts as
that failure alone: its seed is judged again by --resume, once the fault is repaired.
Exit code 1: something is wrong, faulty, crashed or hung.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from bench_record import commit, machine, versions
from fuzzing.sketch import OPSETS

BATCH = 100
"""Graphs of one child process: its start takes as long as some ten of them."""
SOMETIMES = 4
"""Pruning and half precision are tried on every so many-th graph; they take longest."""
ONNXSIM_EVERY = 50
"""onnxsim and reading take a child process, as long as ten graphs."""
STILL_S = 0.5
"""Less processor time than that in the whole time for a graph is a child that waits for ever."""
PATIENCE = 10
"""How many times as long a graph may take where the machine is too busy to give the child its processor time."""
START_S = 60.0
"""Time for the imports of a child."""


@dataclass
class Total:
    """What all batches came to.

    Args:
        graphs: How many graphs were judged without a failure in their batch.
        seconds: Wall time of all runs.
        seeds: The batches that count; the same seed gives the same graphs.
        graphs_by_commit: Commit of the code that judged → how many graphs.
        checks: Check → outcome → how many.
        drawn: Operator → nodes in graphs.
        disagreed: Operator → nodes left out because the oracles differ.
        refused: Operator → nodes left out because an oracle does not run them.
        failures: The failure of each batch that ended with one.
    """

    graphs: int = 0
    seconds: float = 0.0
    seeds: set[int] = field(default_factory=set)
    graphs_by_commit: Counter[str] = field(default_factory=Counter)
    checks: dict[str, Counter[str]] = field(default_factory=dict)
    drawn: Counter[str] = field(default_factory=Counter)
    disagreed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: dict[str, Any], *, seed: int, commit: str) -> None:
        """Adds what a child wrote at its end."""
        if answer["failures"]:
            self.failures += [{**failure, "seed": seed} for failure in answer["failures"]]
            return
        self.graphs += answer["graphs"]
        self.seeds.add(seed)
        self.graphs_by_commit[commit] += answer["graphs"]
        for check, outcome, count in answer["verdicts"]:
            self.checks.setdefault(check, Counter())[outcome] += count
        for name in ("drawn", "disagreed", "refused"):
            getattr(self, name).update(answer[name])

    @property
    def outcomes(self) -> Counter[str]:
        """Outcome → how many checks, failures among them."""
        outcomes = sum(self.checks.values(), Counter[str]())
        outcomes.update(str(failure["message"]).partition(":")[0].partition(",")[0] for failure in self.failures)
        return outcomes

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Total:
        """What earlier runs came to; their failures are left out, so that their seeds are judged again."""
        return cls(
            figures["graphs"],
            figures["seconds"],
            {seed for first, last in figures["seeds"] for seed in range(first, last + 1)},
            Counter(figures["graphs_by_commit"]),
            {check: Counter(outcomes) for check, outcomes in figures["checks"].items()},
            Counter(figures["nodes_by_operator"]),
            Counter(figures["oracles_disagree"]),
            Counter(figures["oracle_refuses"]),
        )


def main() -> int:
    """Runs a child's batch, one saved failure, or the whole."""
    arguments = _arguments()
    if arguments.replay:
        return _replay(arguments.replay)
    if arguments.batch is not None:
        return _child(arguments)
    return _fuzz(arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no batch after that time (600)")
    parser.add_argument("--graphs", type=int, default=10**9, help="most graphs")
    parser.add_argument("--seed", type=int, default=0, help="number of the first batch; the same seed, the same graphs")
    parser.add_argument("--targets", default="", help="names, each perhaps with :PRECISION, separated by commas")
    parser.add_argument("--no-passes", action="store_true", help="targets only")
    parser.add_argument("--jobs", type=int, default=1, help="child processes at a time")
    parser.add_argument("--graph-seconds", type=float, default=120.0, help="longest time for one graph (120)")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="folder for failures")
    parser.add_argument("--output", type=Path, help="JSON file for the figures; its other sections stay")
    parser.add_argument("--section", default="passes", help="name of this run in that file (passes)")
    parser.add_argument("--resume", action="store_true", help="go on with that section: --graphs counts what it has")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one saved failure again")
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--current", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def checks_of(targets: Sequence[str], *, passes: bool, number: int) -> list[str]:
    """The checks of one graph of a batch."""
    from fuzzing.judge import pass_checks

    costly = ("half:fp16", "half:bf16", "prune")
    checks = []
    if passes:
        checks += [check for check in pass_checks() if check not in costly or number % SOMETIMES == 0]
        checks += ["read"] if number % ONNXSIM_EVERY == 1 else []
        checks += ["onnxsim"] if number % ONNXSIM_EVERY == 2 else []
    return checks + [f"target:{name if ':' in name else name + ':fp32'}" for name in targets]


def _child(arguments: argparse.Namespace) -> int:
    """One batch; each graph is saved before it is judged, and a line says that it begins."""
    from fuzzing.batch import run_batch
    from fuzzing.failure import save_failure
    from fuzzing.judge import Outcome, Verdict
    from fuzzing.sketch import Graph

    targets = [name for name in arguments.targets.split(",") if name]
    seed = f"--seed {arguments.batch}"

    def before(graph: Graph) -> None:
        for old in arguments.current.glob("*.onnx"):
            old.unlink()
        save_failure(arguments.current, graph, Verdict(",".join(checks(0)), Outcome.CRASH), seed=seed)
        print("graph", flush=True)

    def checks(number: int) -> list[str]:
        return checks_of(targets, passes=not arguments.no_passes, number=number)

    batch = run_batch(arguments.batch, min(BATCH, arguments.graphs), checks, before=before)
    failures = []
    if batch.failure:
        graph, verdict = batch.failure
        path = save_failure(arguments.failures, graph, verdict, seed=seed)
        failures.append({"file": path.name, "check": verdict.check, "message": f"{verdict.outcome}: {verdict.message}"})
    answer = {
        "graphs": batch.graphs,
        "verdicts": [[*key, count] for key, count in batch.verdicts.items()],
        "drawn": batch.counts.drawn,
        "disagreed": batch.counts.disagreed,
        "refused": batch.counts.refused,
        "failures": failures,
    }
    print(json.dumps(answer), flush=True)
    return 0


def _fuzz(arguments: argparse.Namespace) -> int:
    total, lock, started = earlier_total(arguments), threading.Lock(), time.monotonic()
    earlier_s, revision = total.seconds, str(commit()["commit"])
    numbers = (number for number in range(arguments.seed, 10**9) if number not in total.seeds)

    def work() -> None:
        while True:
            with lock:
                is_over = time.monotonic() - started > arguments.seconds or total.graphs >= arguments.graphs
                number = next(numbers)
            if is_over:
                return
            answer = _run_child(arguments, number)
            with lock:
                total.add(answer, seed=number, commit=revision)
                total.seconds = earlier_s + time.monotonic() - started
                _report(total, answer, number)
                write_figures(arguments, total)

    workers = [threading.Thread(target=work) for _ in range(arguments.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 1 if total.failures else 0


def earlier_total(arguments: argparse.Namespace) -> Total:
    """What --resume goes on from."""
    sections = _sections(arguments)
    if not arguments.resume or arguments.section not in sections:
        return Total()
    figures = sections[arguments.section]
    if figures["targets"] != arguments.targets or figures["batch"] != BATCH:
        sys.exit(f"section '{arguments.section}' is of other targets or batches: name another one with --section")
    return Total.of(figures)


def _sections(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.output is None or not arguments.output.exists():
        return {}
    sections: dict[str, Any] = json.loads(arguments.output.read_text("utf-8"))
    return sections


def _report(total: Total, answer: dict[str, Any], number: int) -> None:
    for failure in answer["failures"]:
        print(f"batch {number}: {failure['file']}: {failure['message'][:300]}", flush=True)
    print(f"batch {number}: {total.graphs} graphs in {total.seconds:.0f} s: {dict(total.outcomes)}", flush=True)


def _run_child(arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """What the child answers; where it crashes or hangs, the failure is the graph it was at."""
    with tempfile.TemporaryDirectory(prefix="fleetc-fuzz-") as folder:
        current = Path(folder, "current")
        command = [sys.executable, __file__, "--batch", str(number), "--current", str(current)]
        command += ["--failures", str(arguments.failures), "--targets", arguments.targets]
        command += ["--graphs", str(arguments.graphs), *(["--no-passes"] if arguments.no_passes else [])]
        with Path(folder, "stderr").open("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            lines, answer = _read(child, arguments.graph_seconds)
            errors.seek(0)
            tail = errors.read()[-500:]
        if answer is not None:
            return answer
        outcome = "hang" if child.returncode == -9 else "crash"
        return _lost(arguments, current, outcome, f"{outcome}, exit code {child.returncode}: {tail}", lines)


def _read(child: subprocess.Popen[str], graph_s: float) -> tuple[int, dict[str, Any] | None]:
    """How many graphs the child began, and its answer; it is killed where a graph takes too long."""
    lines: queue.Queue[str] = queue.Queue()
    stream = child.stdout

    def follow() -> None:
        for line in stream or ():
            lines.put(line)
        lines.put("")

    threading.Thread(target=follow, daemon=True).start()
    count, limit, before, waited = 0, max(graph_s, START_S), 0.0, 0.0
    while True:
        try:
            line = lines.get(timeout=limit)
        except queue.Empty:
            used, waited = _cpu_s(child.pid), waited + limit
            if STILL_S < used - before < limit and waited < PATIENCE * limit:
                continue  # it is computing, and the machine gives it little time
            child.kill()
            child.wait()
            return count, None
        if not line:
            child.wait()
            return count, None
        if line.startswith("{"):
            child.wait()
            answer: dict[str, Any] = json.loads(line)
            return count, answer
        count, limit, before, waited = count + 1, graph_s, _cpu_s(child.pid), 0.0


def _cpu_s(pid: int) -> float:
    """Processor time of a child and of the tools that it started or starts; 0 where it has ended."""
    try:
        child = psutil.Process(pid)
        times = [process.cpu_times() for process in (child, *child.children(recursive=True))]
    except psutil.Error:
        return 0.0
    return float(sum(time.user + time.system + time.children_user + time.children_system for time in times))


def _lost(arguments: argparse.Namespace, current: Path, outcome: str, message: str, graphs: int) -> dict[str, Any]:
    """The answer in place of a child that died: the last graph is kept as the failure."""
    saved = sorted(current.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns)[-1:]
    failures = []
    for path in saved:
        arguments.failures.mkdir(parents=True, exist_ok=True)
        kept = arguments.failures / f"{outcome}-{path.stem.rpartition('-')[2]}.onnx"
        kept.write_bytes(path.read_bytes())
        failures.append({"file": kept.name, "check": "all", "message": message})
    if not saved:
        failures.append({"file": "", "check": "all", "message": message})
    empty: dict[str, int] = {}
    return {
        "graphs": max(0, graphs - 1),
        "verdicts": [["all", outcome, 1]],
        "drawn": empty,
        "disagreed": empty,
        "refused": empty,
        "failures": failures,
    }


def _replay(path: Path) -> int:
    """The failed check of a saved graph again; all checks where it crashed or hung."""
    from fuzzing.failure import load_failure
    from fuzzing.judge import BAD, judge

    saved = load_failure(path)
    checks = saved.check.split(",")
    print(f"{path}: {saved.check} ({saved.seed})\nthen: {saved.message}")
    verdicts = list(judge(saved.graph, checks))
    for verdict in verdicts:
        print(f"now: {verdict.check}: {verdict.outcome} {verdict.message}")
    return 1 if any(verdict.outcome in BAD for verdict in verdicts) else 0


def write_figures(arguments: argparse.Namespace, total: Total) -> None:
    """The figures so far, beside the other sections of the file; whoever is killed leaves the old file or the new."""
    if arguments.output is None:
        return
    figures = {
        "what": "random graphs through passes and targets, against ONNX Runtime and ONNX's evaluator",
        **commit(),
        "machine": machine(),
        "versions": versions(["onnx", "onnxruntime", "onnxsim", "onnx-ir", "onnxscript", "hypothesis", "numpy"]),
        "targets": arguments.targets,
        "opsets": list(OPSETS),
        "batch": BATCH,
        "seeds": _ranges(total.seeds),
        "seconds": round(total.seconds, 1),
        "graphs": total.graphs,
        "graphs_by_commit": dict(total.graphs_by_commit),
        "outcomes": dict(total.outcomes.most_common()),
        "checks": {check: dict(outcomes) for check, outcomes in sorted(total.checks.items())},
        "nodes_by_operator": dict(total.drawn.most_common()),
        "oracles_disagree": dict(total.disagreed.most_common()),
        "oracle_refuses": dict(total.refused.most_common()),
        "failures": total.failures,
    }
    text = json.dumps({**_sections(arguments), arguments.section: figures}, indent=1) + "\n"
    beside = arguments.output.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(arguments.output)


def _ranges(seeds: set[int]) -> list[list[int]]:
    """First and last of each run of seeds without a gap."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ranges


if __name__ == "__main__":
    sys.exit(main())
