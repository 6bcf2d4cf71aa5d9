"""What a build is in the process that builds are forked from: everything imported, then the command line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from compiler.model.forks import ForkServer
from compiler.store.digests import closure_digest, find_closure

NEEDED = (
    "compiler.cli",
    "compiler.driver.build",
    "compiler.passes.pipelines",
    "compiler.store.remote.client",
)
"""What a build imports whatever its target. Runtimes and toolchains are left out: a fork has none of their threads, and
would wait for them for ever."""

NAME = "fleetc-build"
"""What `ps` and `top` call the process of a build."""

STAGES = "compiler.driver.stages."
"""Modules whose sources are part of the keys of stages."""


def fork_server() -> ForkServer:
    """Where the processes of builds are forked from."""
    return ForkServer("server.builds:prepare", name=NAME)


def prepare() -> Iterable[str]:
    """Imports what builds need, and reads its sources for their keys. Returns all files of it."""
    for module in NEEDED:
        importlib.import_module(module)
    files = {str(file) for module in sys.modules.values() if (file := getattr(module, "__file__", None))}
    for name in [name for name in sys.modules if name.startswith(STAGES)]:
        closure_digest(name)
        files |= {str(path) for _, path in find_closure(name).files}
    return files


def build(*arguments: str) -> None:
    """Runs the command line."""
    sys.argv = ["fleetc", *arguments]
    sys.modules["__main__"].__package__ = None  # or usage errors would call it `python -m compiler.model.fleetc`
    from compiler.cli import main

    main()


def build_environment() -> dict[str, str]:
    """This process's environment without what concerns the server: a build opens strangers' models."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEETC_")}
