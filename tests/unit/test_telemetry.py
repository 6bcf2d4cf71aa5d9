"""Nothing that fleetc imports writes or sends records of the models it opens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

OPEN = """
import compiler
from compiler.model.onnx_runtime import open_session
open_session({model!r}, is_optimized=False)
"""
CHILD = "import compiler, subprocess, sys; subprocess.run([sys.executable, '-c', 'import onnxruntime'], check=True)"


def files_of(code: str, home: Path) -> list[Path]:
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.parametrize("code", [OPEN, CHILD], ids=["a session", "a child"])
def test_a_model_that_is_opened_leaves_no_record_of_it(code: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), model)
    (home := tmp_path / "home").mkdir()
    assert files_of(code.format(model=str(model)), home) == []
