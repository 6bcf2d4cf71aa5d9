"""Programs that read a prompt and answer it, timed: the side of bench_language_speed.py that has a process of its own.

    python language_programs.py KIND MODEL DESCRIPTOR

For every line of the standard input, a prompt as token ids, a line of the descriptor says what it took. It imports of
the compiler only what its kind needs: another interpreter may run it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np

TOKENS = 32
"""Tokens of an answer that are timed."""

CONTEXT, PREFILL = 1024, 256

Clock = tuple[float, float]
"""Seconds of the clock and of the processor."""

Times = dict[str, Clock]
Program = Callable[[list[int]], Times]
"""Reads a prompt, answers it, and says what each of both took (`prompt`, `answer`)."""


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
    """For every line a prompt, and what it took as a line of the descriptor `answers`."""
    program = PROGRAMS[kind](model)
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            print(json.dumps(program(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
