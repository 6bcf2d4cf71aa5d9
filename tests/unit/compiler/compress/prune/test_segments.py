"""Models computed segment by segment give what they give at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.segments import Segments
from compiler.compress.prune.tap import watch
from compiler.model.numerics import Arrays

HEADER = '<ir_version: 10, opset_import: ["": 20]>'

TEXT = f"""{HEADER}
    g (float[N,4] x, float[N,4] late) => (float[N,4] y) {{
      a_1 = Relu(x) file = Neg(a_1) c = Add(file, late) d = Mul(c, a_1) y = Tanh(d) }}"""


def batches() -> Iterator[Arrays]:
    random = np.random.default_rng(0)
    for size in (3, 2, 4):
        yield {name: random.normal(size=(size, 4)).astype(np.float32) for name in ("late", "x")}


def test_segments_give_what_the_whole_model_gives(tmp_path: Path) -> None:
    model = ir.from_onnx_text(TEXT)
    segments = Segments((model, model.clone()), batches, tmp_path)
    first = list(segments.advance((["file"], []), ["a_1", "file", "late"]))
    second = list(segments.advance((["c", "a_1"], ["y"]), []))
    whole = list(watch(model, ["file", "c", "a_1", "y"], batches()))
    assert len(first) == len(second) == 3
    for (a, none), (b, c), wanted in zip(first, second, whole, strict=True):
        assert not none
        for found, right in zip((a["file"], b["c"], b["a_1"], c["y"]), wanted, strict=True):
            np.testing.assert_array_equal(found, right)


def test_a_segment_sees_what_was_changed_behind_the_one_before(tmp_path: Path) -> None:
    text = f"""{HEADER}
        g (float[N,4] x) => (float[N,4] y) <float[1] w = {{2}}> {{ a = Neg(x) y = Mul(a, w) }}"""
    model = ir.from_onnx_text(text)
    segments = Segments((model,), batches, tmp_path)
    assert not any(one for (one,) in segments.advance(([],), ["a"]))
    model.graph.initializers["w"].const_value = ir.tensor(np.array([3], np.float32), name="w")
    found = [one["y"] for (one,) in segments.advance((["y"],), [])]
    for array, batch in zip(found, batches(), strict=True):
        np.testing.assert_array_equal(array, -3 * batch["x"])
