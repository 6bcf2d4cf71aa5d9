"""What runs an artifact holds no more than that takes: its memory is what a limit counts."""

from __future__ import annotations

import subprocess
import sys

import pytest

GRAPH_LIBRARIES = ("onnx", "onnx_ir", "sympy")


@pytest.mark.parametrize(
    "module",
    [
        "compiler.target.worker",
        "targets.onnxruntime_cpu.in_place",
        "targets.intel_openvino.stateful",
        "targets.arm_tvm.run.runner",
        "targets.nvidia_tensorrt",
    ],
)
def test_a_runner_loads_no_graph_library(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {GRAPH_LIBRARIES} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
