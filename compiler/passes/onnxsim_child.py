"""The child of simplify-onnxsim: reads `in.onnx` of a folder, and writes `out.onnx` there."""

from __future__ import annotations

import importlib
import os
import resource
import sys
from pathlib import Path

import onnx

SOURCE, RESULT = "in.onnx", "out.onnx"

MEMORY_BYTES = 16 << 30
"""Address space; ONNX Runtime and onnxsim reserve some gigabytes before they do anything."""

FOLD_THRESHOLD = "64KB"
"""onnxsim folds no constant larger than this; what folding may cost is decided in fold-constants."""

FOREIGN_FUSIONS = ["fuse_attention", "fuse_gqa", "fuse_qkv", "fuse_rope"]
"""Optimizers of onnxsim that make operators of ONNX Runtime's own domain, which no target has."""


def prepare() -> tuple[str, ...]:
    """Imports what most of the time of onnxsim's own import goes to.

    Not onnxsim itself, which imports ONNX Runtime: a fork would wait for its threads for ever.

    Returns:
        No file that must not change: these are none of ours.
    """
    importlib.import_module("sympy")
    return ()


def simplify(folder: str, mode: str) -> None:
    """Simplifies `in.onnx` into `out.onnx`, in mode `fold` without graph optimizations, and ends this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import onnxsim

    # Fusions into weights are ours (the weights are not here), and so is everything inside subgraphs and functions.
    simplified, _ = onnxsim.simplify(
        onnx.load(Path(folder) / SOURCE),
        check_n=0,
        perform_optimization=mode != "fold",
        skip_fuse_bn=True,
        skipped_optimizers=FOREIGN_FUSIONS,
        tensor_size_threshold=FOLD_THRESHOLD,
        include_subgraph=False,
    )
    onnx.save(simplified, Path(folder) / RESULT)
    sys.stdout.flush()
    os._exit(0)  # unloading what was imported takes a tenth of a second, for nothing
