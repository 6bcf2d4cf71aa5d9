"""Where PyTorch is not installed, recovery says what to install."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["torch"] = None  # importing it fails, as where it is not installed
from compiler.errors import TargetUnavailable
from compiler.compress.recover import Recipe, check_torch
Recipe().progress(1, 60.0)
try:
    check_torch()
except TargetUnavailable as error:
    print(error.exit_code, error)
"""


def test_missing_torch_is_exit_code_4_and_names_the_extra() -> None:
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("4 ") and "pip install 'fleetc[train]'" in found.stdout
