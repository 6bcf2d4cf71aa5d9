"""The child process of an attempt: `fleetc build`, which ends when its worker does, however that ends."""

from __future__ import annotations

import sys

from compiler.model.child import follow_parent


def main() -> None:
    """Runs the command line after seeing to it that nothing outlives the worker."""
    follow_parent()
    from compiler.cli import main as run

    sys.argv[0] = "fleetc"
    run()


if __name__ == "__main__":
    main()
