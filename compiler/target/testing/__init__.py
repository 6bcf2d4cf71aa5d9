"""For authors of targets: conformance cases, the runner that judges a target by them, and a complete fake target.

    import pytest
    from compiler.target import load_profile
    from compiler.target.testing import conformance_cases, run_case
    from acme_npu import TARGET

    @pytest.mark.parametrize("case", conformance_cases(), ids=lambda case: case.name)
    def test_conformance(case, tmp_path):
        outcome = run_case(TARGET, load_profile("acme-board.yaml"), case, workdir=tmp_path)
        assert outcome.passed, outcome

Nothing here imports pytest.
"""

from compiler.target.testing.backend import onnx_backend_cases
from compiler.target.testing.blocks import blocks
from compiler.target.testing.case import Case, evaluate, text_case
from compiler.target.testing.fake import FakeTarget, install_plugin
from compiler.target.testing.fake_tuning import FakeTunedTarget
from compiler.target.testing.layers import activations, convolutions, pools, products
from compiler.target.testing.run import Outcome, Status, check_target, run_case
from compiler.target.testing.tensors import arithmetic, movement

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
    "run_case",
    "text_case",
]


def conformance_cases(*, essential: bool = False) -> list[Case]:
    """The cases every target is judged by, in a fixed order.

    Args:
        essential: Only the short list, for targets that take seconds per case.
    """
    groups = (convolutions, pools, products, activations, movement, arithmetic, blocks)
    return [case for group in groups for case in group() if case.essential or not essential]
