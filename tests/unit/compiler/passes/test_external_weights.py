from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from pass_cases import parse, with_weight

from compiler.passes.pipelines import PORTABLE, load_passes
from compiler.passes.probe import make_probe
from compiler.passes.run import run_passes


def test_weights_in_another_file_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """g (float[N,64] x, float[64,64] w, float[64] b) => (float[N,64] y)
        { m = MatMul(x, w) a = Add(m, b) i = Identity(a) y = Relu(i) }"""
    random = np.random.default_rng(0)
    model = with_weight(parse(text), "w", random.standard_normal((64, 64), dtype=np.float32))
    with_weight(model, "b", random.standard_normal(64, dtype=np.float32))
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    monkeypatch.chdir("/")
    loaded = ir.load(tmp_path / "m.onnx")
    probe = make_probe(loaded)
    assert probe.why == ""
    records = run_passes(loaded, load_passes(PORTABLE), probe=probe, check_each=True)
    assert not any("left out" in note for note in records[0].notes)
    assert "Identity" not in [node.op_type for node in loaded.graph]
