"""What is asked for: fleet files, hardware profiles, and what this machine is."""

from __future__ import annotations

from compiler.fleet.fleet import (
    DeviceClass,
    Fleet,
    FleetFile,
    Kept,
    Limits,
    Prune,
    Serve,
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
    "Kept",
    "Limits",
    "Prune",
    "Range",
    "Serve",
    "Unjudged",
    "WhenUnjudged",
    "load_fleet",
    "read_prune",
]
