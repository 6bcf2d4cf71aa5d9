#!/usr/bin/env python3
"""Writes the folder that offers an ARM board to TVM's tracker without Python on the board.

    scripts/board_server.py raspberry-pi-5 server/     then copy server/ to the board, and there: ./serve HOST PORT KEY

`docs/tuning.md` tells the rest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from platformdirs import user_cache_path

from compiler.errors import CompilerError
from compiler.fleet.profile import load_profile, validate_options
from targets.arm_tvm.bundle.folder import write_server
from targets.arm_tvm.options import Options


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", help="name or file of the board's profile, of target tvm")
    parser.add_argument("folder", type=Path, help="is made; must not be there")
    parser.add_argument("--cache", type=Path, default=user_cache_path("fleetc") / "toolchains")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"{given.folder} is there already")
    try:
        options = validate_options(Options, load_profile(given.profile))
        write_server(options.arch, workdir=given.folder, cache_dir=given.cache)
    except CompilerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
