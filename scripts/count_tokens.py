#!/usr/bin/env python3
"""Guest instructions of one token of an ARM bundle that generates, counted under QEMU on one thread.

    scripts/count_tokens.py dist/pi5 --behind 16 64

prints as JSON, for each length of the prompt, the instructions of the token behind it, and the bytes that are mapped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from compiler.artifact.manifest import read_artifact
from compiler.errors import CompilerError, UsageError
from targets.arm_tvm.run.runner import DecoderBundle, load_bundle


def count(folder: Path, lengths: list[int]) -> dict[str, object]:
    """What is printed.

    Args:
        folder: The artifact.
        lengths: Tokens of each prompt, which are drawn from a fixed seed.

    Raises:
        UsageError: It is no language model of target `tvm`.
        TargetUnavailable: There is no emulator.
    """
    delivered = read_artifact(folder)
    spoken = delivered.manifest.generation
    if delivered.artifact.target != "tvm" or spoken is None:
        raise UsageError("it is no language model of target tvm", where=str(folder))
    bundle = load_bundle(delivered.artifact)
    assert isinstance(bundle, DecoderBundle)  # noqa: S101  its manifest has a generation
    ids = np.random.default_rng(0).integers(0, spoken.decoder.vocabulary, max(lengths)).tolist()
    return {
        "core": delivered.artifact.facts["mcpu"],
        "precision": delivered.artifact.precision,
        "weights_bytes": (folder / "payload" / "weights.bin").stat().st_size,
        "instructions": {str(length): bundle.count_token(ids[:length]) for length in lengths},
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--behind", type=int, nargs="+", default=[16], help="tokens of the prompts")
    arguments = parser.parse_args()
    try:
        print(json.dumps(count(arguments.artifact, arguments.behind), indent=1))
    except CompilerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
