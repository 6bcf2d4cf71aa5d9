"""What is asked for: fleet files, hardware profiles, and what this machine is."""

from __future__ import annotations

from compiler.fleet.fleet import (
    DeviceClass,
    Fleet,
    FleetFile,
    Limits,
    Prune,
    Unjudged,
    WhenUnjudged,
    load_fleet,
    read_prune,
)
from compiler.fleet.sizes import Range

__all__ = [
    "DeviceClass",
    "Fleet",
    "FleetFile",
    "Limits",
    "Prune",
    "Range",
    "Unjudged",
    "WhenUnjudged",
    "load_fleet",
    "read_prune",
]
