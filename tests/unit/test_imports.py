"""Every module can be imported, on every promised Python, without a warning and without a toolchain."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys

def import_all(package):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "torch":  # optional, and imported by name only where it is needed
                raise

for name in ("compiler", "targets", "profiles", "serving", "rollout"):
    import_all(importlib.import_module(name))
loaded = {"tvm", "openvino", "tensorrt", "tensorrt_rtx"} & set(sys.modules)
assert not loaded, f"imported with a module: {loaded}"
"""


def test_every_module_is_imported_without_a_warning_or_a_toolchain() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


TOOLCHAINS = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch", "tvm"}
BIG = {"PIL", "onnx", "onnx_ir", "onnxsim", "sympy"} | TOOLCHAINS

TARGETS = ("reference", "onnxruntime", "openvino", "tensorrt", "tvm")

RUN_ARTIFACT = "import compiler.target.worker\nfrom compiler.target import find_target\nfind_target({target!r})"
COMMAND = """
import sys
from compiler.cli import main
sys.argv = ["fleetc", *{args!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "source",
    [
        "import compiler.target.worker",
        *(RUN_ARTIFACT.format(target=target) for target in TARGETS),
        *(COMMAND.format(args=args) for args in (["--help"], ["build", "--help"], ["profiles", "list"], ["targets"])),
    ],
    ids=["child", *TARGETS, "help", "build help", "profiles", "targets"],
)
def test_a_start_waits_for_no_library_that_it_does_not_need(source: str) -> None:
    """Each takes a part of a second, and a build starts one child process after another."""
    script = f"{source}\nimport sys\nprint('big:', *sorted({BIG!r} & set(sys.modules)))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "big:", "these are imported at the top of a module: import them where used"
