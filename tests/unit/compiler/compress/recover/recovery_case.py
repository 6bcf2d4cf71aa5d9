"""A small network without some of its channels, and data to recover it with; run as a program, it does so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.cut import cut_channels
from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.prepare import prepare
from compiler.compress.recover import Goal, Pair, Recipe, Recovered, choose_taps, recover
from compiler.model.numerics import Arrays
from compiler.passes.infer_shapes import INFER_SHAPES

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float[N,3,8,8] x, float[16,3,3,3] a, float[16] b, float[16,16,3,3] c, float[16] d, float[4,16] e) => (float[N,4] y) {
  s = Conv<pads=[1,1,1,1]>(x, a, b) r = Relu(s) t = Conv<pads=[1,1,1,1]>(r, c, d) u = Add(r, t) v = Relu(u)
  g = GlobalAveragePool(v) f = Flatten(g) y = Gemm<transB=1>(f, e) }"""


def network(text: str = TEXT) -> ir.Model:
    model = ir.from_onnx_text(text)
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        shape = [int(size) for size in value.shape or ()]
        array = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    INFER_SHAPES(model)
    return prepare(model)


def batches() -> Iterator[Arrays]:
    random = np.random.default_rng(5)
    for _ in range(4):
        yield {"x": random.standard_normal((8, 3, 8, 8)).astype(np.float32)}


def recovered(folder: Path, recipe: Recipe, text: str = TEXT, *, goal: Goal | None = None) -> Recovered:
    model = network(text)
    ties = find_ties(model)
    removed = ties.groups[0].channels[:4]
    pruned = cut_channels(model, ties, removed)
    taps = choose_taps(pruned, ties, removed)
    return recover(Pair(model, pruned, taps), batches, folder=folder, recipe=recipe, goal=goal)


KILLED = Recipe(seconds=float("inf"), steps=60, batch=8, save_every_s=0.0, patience=100)

if __name__ == "__main__":
    recovered(Path(sys.argv[1]), KILLED)
