"""Windows of a text for a decoder language model: tokens with an empty cache, and the tokens themselves as labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import DataError, TargetUnavailable
from compiler.evaluate.dataset import Dataset, Step
from compiler.evaluate.judged import OutputPart
from compiler.model.decoder import Decoder
from compiler.model.numerics import Array, Arrays
from compiler.model.spec import TensorSpec

JUDGED = 64
"""Tokens at the end of a window that are judged: those before them are what a user has said already."""

WINDOWS = 16
"""Windows where the fleet file does not say how many: 1,024 judged tokens."""

_EXTRA = "pip install 'fleetc[language]'"

TokenIds = NDArray[np.int64]


def open_text(
    path: Path,
    inputs: Sequence[TensorSpec],
    decoder: Decoder,
    *,
    window: int,
    tokenizer: Path | None,
    count: int | None,
) -> Dataset:
    """Windows of a text, evenly over it.

    Args:
        path: A text in UTF-8, or a .npy of token ids.
        inputs: What the model takes.
        decoder: What they mean.
        window: Tokens of a window.
        tokenizer: The `tokenizer.json` of a text.
        count: How many windows; some if None.

    Raises:
        DataError: The text is too short, cannot be read, or its tokens are not the model's.
        TargetUnavailable: The tokenizers package is not installed.
    """
    _refuse_other_inputs(inputs, decoder)
    ids = read_tokens(path, tokenizer)
    wanted = count or WINDOWS
    if len(ids) < window or (count is not None and len(ids) < window * count):
        raise DataError(
            f"the text has {len(ids)} tokens, and {wanted} windows of {window} need {window * wanted}",
            where=str(path),
            remedy="Give a longer text, fewer `samples`, or a smaller `generation: {prefill: …}`.",
        )
    if decoder.vocabulary and int(ids.max()) >= decoder.vocabulary:
        raise DataError(
            f"the tokenizer gives ids up to {ids.max()}, and the model has {decoder.vocabulary} tokens",
            where=str(tokenizer or path),
            remedy="Take the tokenizer that the model was trained with.",
        )
    windows = min(wanted, len(ids) // window)
    starts = np.linspace(0, len(ids) - window, windows).astype(np.int64)
    rows = np.stack([ids[start : start + window] for start in starts])
    judged = min(JUDGED, window // 2)
    labels = np.zeros(len(rows), np.dtype([("ids", np.int64, (judged,))]))
    labels["ids"] = rows[:, -judged:]
    return Dataset(
        count=len(rows),
        origin=f"{path.name}, {len(rows)} windows of {window} tokens",
        digest=hashlib.sha256(f"{judged} {window}".encode() + rows.tobytes()).hexdigest(),
        inputs=tuple(inputs),
        steps=partial(_steps, rows, tuple(inputs), decoder),
        labels=labels,
        # the last token of a window has no next one to be judged by
        judged=OutputPart(decoder.logits, judged + 1),
    )


def read_tokens(path: Path, tokenizer: Path | None) -> TokenIds:
    """The token ids of a text, or those in a .npy.

    Raises:
        DataError: The file cannot be read, or a text has no tokenizer.
        TargetUnavailable: The tokenizers package is not installed.
    """
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise DataError(f"token ids are one row of integers, not {array.dtype} {array.shape}", where=str(path))
            return np.asarray(array, np.int64)
        if tokenizer is None:
            raise DataError(
                "a text has no tokenizer", where=str(path), remedy="Add `tokenizer: tokenizer.json`, or give token ids."
            )
        return encode(load_tokenizer(tokenizer), path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"it cannot be read: {error}", where=str(path)) from error


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a `tokenizer.json`.

    Raises:
        TargetUnavailable: The tokenizers package is not installed.
        DataError: The file cannot be read.
    """
    if find_spec("tokenizers") is None:
        raise TargetUnavailable("the package tokenizers is not installed", where=str(path), remedy=_EXTRA)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # its Rust library raises bare Exception
        raise DataError(f"the tokenizer cannot be read: {error}", where=str(path)) from error


@dataclass(frozen=True)
class _Encoded:
    ids: list[int]


class TokenNumbers:
    """What stands in for a tokenizer where there is none: text is token ids."""

    def encode(self, text: str) -> _Encoded:
        """The numbers of a text; raises DataError where it is none of numbers."""
        try:
            return _Encoded([int(word) for word in text.replace(",", " ").split()])
        except ValueError as error:
            remedy = "Name the tokenizer: --tokenizer tokenizer.json, or `evaluation: {tokenizer: …}`."
            raise DataError("without a tokenizer a prompt is token ids", where="--prompt", remedy=remedy) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The ids as text."""
        return " ".join(map(str, ids))

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        """No token is special."""
        return {}


def open_tokenizer(path: Path | None) -> Any:
    """The tokenizer of a file; without one, what reads and writes token ids. Raises as `load_tokenizer`."""
    return TokenNumbers() if path is None else load_tokenizer(path)


def special_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: those that the tokenizer marks as special."""
    added = tokenizer.get_added_tokens_decoder().items()
    return tuple(sorted(number for number, token in added if token.special))


def encode(tokenizer: Any, text: str) -> TokenIds:
    """The ids of a text's tokens."""
    return np.array(tokenizer.encode(text).ids, np.int64)


def empty_cache(inputs: Sequence[TensorSpec], decoder: Decoder, *, rows: int = 1) -> dict[str, Array]:
    """The inputs of the cache of some sequences before their first token."""
    cached = {pair.past: pair.axis for pair in decoder.pairs}
    return {
        spec.name: np.zeros(
            [
                0 if axis == cached[spec.name] else size if isinstance(size, int) else rows
                for axis, size in enumerate(spec.shape)
            ],
            spec.dtype,
        )
        for spec in inputs
        if spec.name in cached
    }


def cut_cache(
    cache: Arrays, inputs: Sequence[TensorSpec], decoder: Decoder, *, rows: int, past: int
) -> dict[str, Array]:
    """What the cache of the first sequences was behind their first tokens: part of what it is behind more of them.

    Args:
        cache: Input name → array.
        inputs: What the model takes.
        decoder: Which inputs are its cache.
        rows: Sequences.
        past: Tokens of each.
    """
    axes = {pair.past: pair.axis for pair in decoder.pairs}
    return {
        spec.name: cache[spec.name][
            tuple(
                slice(past) if axis == axes[spec.name] else slice(None) if isinstance(size, int) else slice(rows)
                for axis, size in enumerate(spec.shape)
            )
        ]
        for spec in inputs
        if spec.name in axes
    }


def token_inputs(ids: TokenIds, past: int, inputs: Sequence[TensorSpec], decoder: Decoder) -> dict[str, Array]:
    """Ids, mask and positions of tokens behind others.

    Args:
        ids: (sequences, tokens).
        past: Tokens in the cache.
        inputs: What the model takes.
        decoder: What they mean.
    """
    rows, length = ids.shape
    made = {decoder.ids: ids}
    if decoder.mask:
        made[decoder.mask] = np.ones((rows, past + length), np.int64)
    if decoder.positions:
        made[decoder.positions] = np.tile(np.arange(past, past + length), (rows, 1))
    kinds = {spec.name: spec.dtype for spec in inputs}
    return {name: array.astype(kinds[name], copy=False) for name, array in made.items()}


def _steps(rows: TokenIds, inputs: tuple[TensorSpec, ...], decoder: Decoder) -> Iterator[Step]:
    cache = empty_cache(inputs, decoder)

    def step(row: TokenIds) -> Arrays:
        return {**token_inputs(row[None], 0, inputs, decoder), **cache}

    return (partial(step, row) for row in rows)


def _refuse_other_inputs(inputs: Sequence[TensorSpec], decoder: Decoder) -> None:
    known = {decoder.ids, decoder.mask, decoder.positions, *(pair.past for pair in decoder.pairs)}
    if others := [spec.name for spec in inputs if spec.name not in known]:
        raise DataError(
            f"the model also takes {', '.join(others)}, and a text says nothing of them",
            where="evaluation",
            remedy="Fix them with `inputs:` in the fleet file.",
        )
