"""From the plan to the artifact: the stages, their measurements, the search among candidates."""

from __future__ import annotations

from compiler.driver.build import build_fleet

__all__ = ["build_fleet"]
