"""What onnxruntime-genai is told of a decoder: genai_config.json, and the tokenizer's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compiler.artifact.schema import GenerationFacts
from compiler.target import Artifact, DataError, TensorSpec

MODEL = "model.onnx"
TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"

_NUMBER = re.compile(r"\d+")


def genai_config(artifact: Artifact, facts: GenerationFacts | None, *, special: Mapping[str, int]) -> dict[str, Any]:
    """The content of `genai_config.json`.

    Args:
        artifact: The build.
        facts: What its manifest says of it as a language model; None where it says nothing.
        special: Tokens that end an answer, by their text.

    Raises:
        DataError: It is no language model of target onnxruntime, or its names are not numbered layer by layer.
    """
    if facts is None or artifact.target != "onnxruntime":
        raise DataError(
            "onnxruntime-genai runs language models that were built for target onnxruntime, and this is none",
            where=str(artifact.root),
            remedy="Build the decoder with `generation: {…}` for a profile of that target.",
        )
    decoder = facts.decoder
    keys, values = decoder.pairs[0::2], decoder.pairs[1::2]
    specs = {spec.name: spec for spec in artifact.inputs}
    cache = specs[decoder.pairs[0].past]
    stops = sorted(special.values()) or [decoder.vocabulary]  # no token has that number: answers end by their length
    inputs = {
        "input_ids": decoder.ids,
        **({"attention_mask": decoder.mask} if decoder.mask else {}),
        **({"position_ids": decoder.positions} if decoder.positions else {}),
        "past_key_names": _pattern([pair.past for pair in keys]),
        "past_value_names": _pattern([pair.past for pair in values]),
    }
    outputs = {
        "logits": decoder.logits,
        "present_key_names": _pattern([pair.present for pair in keys]),
        "present_value_names": _pattern([pair.present for pair in values]),
    }
    threads = dict(artifact.facts["config"])["intra_op_num_threads"]  # type: ignore[call-overload]  # JSON by `build`
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": stops[0],
            "eos_token_id": stops,
            "pad_token_id": stops[0],
            "context_length": facts.context,
            "vocab_size": decoder.vocabulary,
            "decoder": {
                "filename": MODEL,
                "head_size": _size(cache, 3),
                "num_key_value_heads": _size(cache, 1),
                "num_hidden_layers": len(keys),
                "session_options": {"intra_op_num_threads": threads, "provider_options": []},
                "inputs": inputs,
                "outputs": outputs,
            },
        },
        # the cache is an input and an output of its own: one buffer for both is what GroupQueryAttention alone takes
        "search": {"do_sample": False, "max_length": facts.context, "past_present_share_buffer": False},
    }


def special_in(tokenizer: Path) -> dict[str, int]:
    """The tokens that a `tokenizer.json` marks as special, by their text; raises DataError where it is none."""
    try:
        added = json.loads(tokenizer.read_text("utf-8")).get("added_tokens", [])
        return {str(token["content"]): int(token["id"]) for token in added if token.get("special")}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"the tokenizer cannot be read: {error}", where=str(tokenizer)) from error


def tokenizer_settings(special: Mapping[str, int]) -> dict[str, Any]:
    """The content of `tokenizer_config.json`: byte-level pairs as GPT-2 has them, nothing added to a text."""
    first = next(iter(sorted(special, key=special.__getitem__)), None)
    ends = {name: first for name in ("bos_token", "eos_token", "unk_token")} if first is not None else {}
    return {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "add_prefix_space": False, **ends}


def _pattern(names: list[str]) -> str:
    """`past.%d.key` for the names of all layers, in their order."""
    pattern = _NUMBER.sub("%d", names[0], count=1)
    if "%d" not in pattern or [pattern.replace("%d", str(number)) for number in range(len(names))] != names:
        raise DataError(
            f"names of the cache are not numbered from 0, layer by layer: {', '.join(names[:3])}",
            where="fleetc export --ort-genai",
            remedy="Export the model with past_key_values.0.key and .value, and so on.",
        )
    return pattern


def _size(cache: TensorSpec, axis: int) -> int:
    size = cache.shape[axis]
    if not isinstance(size, int):
        raise DataError(f"dimension {axis} of '{cache.name}' is open, and the cache is (batch, heads, past, head)")
    return size
