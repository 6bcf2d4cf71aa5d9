"""fleetc: a hardware-aware model compiler with target plugins.

The names below are the public API; everything else may change. Each is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime (since 1.29) sends the names and digests of the models it opens to its maker, unless told not to before
# it is imported; whoever wants that sets the variable to 0. Child processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from compiler.artifact.manifest import read_artifact
    from compiler.driver import build_fleet
    from compiler.errors import CompilerError
    from compiler.fleet import load_fleet
    from compiler.fleet.profile import load_profile
    from compiler.model.frontend import import_model
    from compiler.plan import BuildOptions, make_plan
    from compiler.plan.jobs import plan_fleet
    from compiler.target import find_target, list_targets

_PLACES = {
    "BuildOptions": "compiler.plan.plan",
    "CompilerError": "compiler.errors",
    "build_fleet": "compiler.driver.build",
    "find_target": "compiler.target.target",
    "import_model": "compiler.model.frontend",
    "list_targets": "compiler.target.target",
    "load_fleet": "compiler.fleet.fleet",
    "load_profile": "compiler.fleet.profile",
    "make_plan": "compiler.plan.plan",
    "plan_fleet": "compiler.plan.jobs",
    "read_artifact": "compiler.artifact.manifest",
}

__all__ = [
    "BuildOptions",
    "CompilerError",
    "build_fleet",
    "find_target",
    "import_model",
    "list_targets",
    "load_fleet",
    "load_profile",
    "make_plan",
    "plan_fleet",
    "read_artifact",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'compiler' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
