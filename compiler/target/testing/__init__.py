"""For authors of targets: conformance cases, the runner that judges a target by them, and a complete fake target.

    import pytest
    from compiler.target import load_profile
    from compiler.target.testing import conformance_cases, run_case
    from acme_npu import TARGET

    @pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case.name)
    def test_conformance(case, tmp_path):
        outcome = run_case(TARGET, load_profile("acme-board.yaml"), case, workdir=tmp_path)
        assert outcome.passed, outcome

Nothing here imports pytest. Each name is imported when it is first used: a child process that runs what the fake target
built loads no graph library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.target.testing.backend import onnx_backend_cases
    from compiler.target.testing.case import Case, evaluate, text_case
    from compiler.target.testing.cases import conformance_cases
    from compiler.target.testing.fake import FakeTarget, install_plugin
    from compiler.target.testing.fake_tuning import FakeTunedTarget
    from compiler.target.testing.quantized import quantized_cases
    from compiler.target.testing.run import Outcome, Status, check_target, run_case

_PLACES = {
    "Case": "compiler.target.testing.case",
    "FakeTarget": "compiler.target.testing.fake",
    "FakeTunedTarget": "compiler.target.testing.fake_tuning",
    "Outcome": "compiler.target.testing.run",
    "Status": "compiler.target.testing.run",
    "check_target": "compiler.target.testing.run",
    "conformance_cases": "compiler.target.testing.cases",
    "evaluate": "compiler.target.testing.case",
    "install_plugin": "compiler.target.testing.fake",
    "onnx_backend_cases": "compiler.target.testing.backend",
    "quantized_cases": "compiler.target.testing.quantized",
    "run_case": "compiler.target.testing.run",
    "text_case": "compiler.target.testing.case",
}

__all__ = [
    "Case",
    "FakeTarget",
    "FakeTunedTarget",
    "Outcome",
    "Status",
    "check_target",
    "conformance_cases",
    "evaluate",
    "install_plugin",
    "onnx_backend_cases",
    "quantized_cases",
    "run_case",
    "text_case",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'compiler.target.testing' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
