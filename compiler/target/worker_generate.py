"""The child's side of a decoder that answers: a prompt in parts, then token after token with its cache fed back."""

from __future__ import annotations

import time

import numpy as np

from compiler.evaluate.text import TokenIds, empty_cache, token_inputs
from compiler.model.numerics import Array
from compiler.target.request import GenerateAnswer, GenerateTask
from compiler.target.runner import Runner
from compiler.target.target import find_target


def generate(task: GenerateTask) -> GenerateAnswer:
    """Answers a prompt with the most probable tokens."""
    runner = find_target(task.artifact.target).load(task.artifact)
    try:
        session = _Session(runner, task)
        started = time.perf_counter()
        prompt = np.array([task.prompt], np.int64)
        for start in range(0, prompt.shape[1], task.prefill):
            best = session.step(prompt[:, start : start + task.prefill])
        prompt_ms = (time.perf_counter() - started) * 1e3
        tokens, times = [], []
        while best not in task.stop:
            tokens.append(best)
            if len(tokens) == task.tokens or session.past == task.context:
                break
            started = time.perf_counter()
            best = session.step(np.array([[best]], np.int64))
            times.append((time.perf_counter() - started) * 1e3)
        return GenerateAnswer(runner.evidence, tuple(tokens), prompt_ms, tuple(times))
    finally:
        runner.close()


class _Session:
    """A decoder's cache between two steps."""

    def __init__(self, runner: Runner, task: GenerateTask) -> None:
        self._runner, self._decoder, self._inputs = runner, task.decoder, task.artifact.inputs
        self._cache: dict[str, Array] = empty_cache(self._inputs, self._decoder)
        self.past = 0

    def step(self, ids: TokenIds) -> int:
        """Reads tokens (1, tokens), and gives the most probable next one."""
        decoder = self._decoder
        outputs = self._runner.run({**token_inputs(ids, self.past, self._inputs, decoder), **self._cache})
        self._cache = {pair.past: outputs[pair.present] for pair in decoder.pairs}
        self.past += ids.shape[1]
        return int(outputs[decoder.logits][0, -1].argmax())
