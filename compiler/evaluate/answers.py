"""A decoder answers a prompt: read in parts, then token after token, each time the most probable one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from compiler.errors import DataError
from compiler.evaluate.text import TokenIds, empty_cache, encode, open_tokenizer, special_tokens, token_inputs
from compiler.fleet.data import Generation
from compiler.model.decoder import Decoder
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec


@dataclass(frozen=True)
class Asked:
    """A prompt, and how it is answered.

    Args:
        prompt: Token ids.
        tokens: Most tokens of the answer.
        prefill: Tokens of the prompt that are read at once.
        context: Tokens of prompt and answer together.
        stop: Tokens that end an answer.
    """

    prompt: tuple[int, ...]
    tokens: int
    prefill: int
    context: int
    stop: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """An answer.

    Args:
        tokens: Its token ids.
        prompt_ms: Milliseconds that the prompt took, in which the first token is made.
        token_ms: Milliseconds of every other token.
    """

    tokens: tuple[int, ...]
    prompt_ms: float
    token_ms: tuple[float, ...]


TOKENS = 48
"""Most tokens of an answer that is shown: two or three sentences, in which errors of a build show."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that a build is shown to answer.

    Args:
        texts: As the file has them.
        asked: The same as token ids.
        tokenizer: What turns ids into text.
    """

    texts: tuple[str, ...]
    asked: tuple[Asked, ...]
    tokenizer: Any = field(repr=False, compare=False)


def open_prompts(path: Path, tokenizer: Path | None, decoder: Decoder, used: Generation) -> Prompts:
    """The prompts of a JSON list.

    Args:
        path: The file.
        tokenizer: The model's `tokenizer.json`; None where prompts are token ids.
        decoder: The model's inputs and outputs.
        used: How the model is used.

    Raises:
        DataError: It cannot be read, is no list of texts, or prompts do not fit the model; all of those at once.
        TargetUnavailable: The tokenizers package is not installed.
    """
    try:
        texts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"it cannot be read: {error}", where=str(path)) from error
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError('prompts are a JSON list of texts: ["…", "…"]', where=str(path))
    codec = open_tokenizer(tokenizer)
    rows = [tuple(map(int, encode(codec, text))) for text in texts]
    unfit = [
        f"  - {text[:40]!r}: {len(row)} tokens, up to {max(row, default=0)}"
        for text, row in zip(texts, rows, strict=True)
        if not 0 < len(row) < used.context or (decoder.vocabulary and max(row) >= decoder.vocabulary)
    ]
    if unfit:
        what = f"prompts do not fit a context of {used.context} and a vocabulary of {decoder.vocabulary}:\n"
        raise DataError(what + "\n".join(unfit), where=str(path))
    stop = special_tokens(codec)
    asked = tuple(Asked(row, TOKENS, used.prefill, used.context, stop) for row in rows)
    return Prompts(tuple(texts), asked, codec)


class Conversation(Protocol):
    """A decoder between two steps; `past` is how many tokens it has read."""

    past: int

    def step(self, ids: TokenIds) -> int:
        """Reads tokens (1, tokens), and gives the most probable next one."""


class FedBack:
    """A conversation whose cache is among the model's outputs, and goes back in with its inputs.

    Args:
        run: Inputs → outputs of the model, by name.
        inputs: What it takes.
        decoder: What its inputs and outputs mean.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], inputs: Sequence[TensorSpec], decoder: Decoder) -> None:
        self._run, self._decoder, self._inputs = run, decoder, inputs
        self._cache: dict[str, Array] = empty_cache(inputs, decoder)
        self.past = 0

    def step(self, ids: TokenIds) -> int:
        """Reads tokens (1, tokens), and gives the most probable next one."""
        decoder = self._decoder
        outputs = self._run({**token_inputs(ids, self.past, self._inputs, decoder), **self._cache})
        self._cache = {pair.past: outputs[pair.present] for pair in decoder.pairs}
        self.past += ids.shape[1]
        return int(outputs[decoder.logits][0, -1].argmax())


class Following:
    """A conversation whose cache stays inside the model.

    Args:
        run: Ids, mask and positions of the next tokens → logits.
        inputs: What the model takes.
        decoder: What its inputs and outputs mean.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], inputs: Sequence[TensorSpec], decoder: Decoder) -> None:
        self._run, self._decoder, self._inputs = run, decoder, inputs
        self.past = 0

    def step(self, ids: TokenIds) -> int:
        """Reads tokens (1, tokens), and gives the most probable next one."""
        outputs = self._run(token_inputs(ids, self.past, self._inputs, self._decoder))
        self.past += ids.shape[1]
        return int(outputs[self._decoder.logits][0, -1].argmax())


def answer(talk: Conversation, asked: Asked) -> Answered:
    """The answer to a prompt, from a conversation that has not begun."""
    started = time.perf_counter()
    prompt = np.array([asked.prompt], np.int64)
    for start in range(0, prompt.shape[1], asked.prefill):
        best = talk.step(prompt[:, start : start + asked.prefill])
    prompt_ms = (time.perf_counter() - started) * 1e3
    tokens: list[int] = []
    times: list[float] = []
    while best not in asked.stop:
        tokens.append(best)
        if len(tokens) == asked.tokens or talk.past == asked.context:
            break
        started = time.perf_counter()
        best = talk.step(np.array([[best]], np.int64))
        times.append((time.perf_counter() - started) * 1e3)
    return Answered(tuple(tokens), prompt_ms, tuple(times))
