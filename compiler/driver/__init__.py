"""From the plan to the artifact: the stages, their measurements, the search that chooses among candidates.

`build_fleet` is imported when it is first used: the command line needs the events of this package, and starts without
the graph library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.driver.build import build_fleet

__all__ = ["build_fleet"]


def __getattr__(name: str) -> Any:
    if name != "build_fleet":
        raise AttributeError(f"module 'compiler.driver' has no attribute '{name}'")
    return import_module("compiler.driver.build").build_fleet
