"""fleetc: a hardware-aware model compiler with target plugins.

The names below are the public API; everything else may change. Each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.driver import build_fleet
    from compiler.errors import CompilerError
    from compiler.fleet import load_fleet
    from compiler.frontend import import_model
    from compiler.jobs import plan_fleet
    from compiler.manifest import read_artifact
    from compiler.plan import BuildOptions, make_plan
    from compiler.profile import load_profile
    from compiler.target import find_target, list_targets

_PLACES = {
    "BuildOptions": "compiler.plan",
    "CompilerError": "compiler.errors",
    "build_fleet": "compiler.driver",
    "find_target": "compiler.target",
    "import_model": "compiler.frontend",
    "list_targets": "compiler.target",
    "load_fleet": "compiler.fleet",
    "load_profile": "compiler.profile",
    "make_plan": "compiler.plan",
    "plan_fleet": "compiler.jobs",
    "read_artifact": "compiler.manifest",
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
