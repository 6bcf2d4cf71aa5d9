"""Every module can be imported, on every promised Python, without a warning and without a toolchain."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

def import_all(package):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "torch":  # optional, and imported by name only where it is needed
                raise

for name in ("compiler", "targets", "profiles"):
    import_all(importlib.import_module(name))
loaded = {"tvm", "openvino", "tensorrt", "tensorrt_rtx"} & set(sys.modules)
assert not loaded, f"imported with a module: {loaded}"
"""


def test_every_module_is_imported_without_a_warning_or_a_toolchain() -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
