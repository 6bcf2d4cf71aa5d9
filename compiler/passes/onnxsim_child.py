"""The child of simplify-onnxsim: `python -m compiler.passes.onnxsim_child IN.onnx OUT.onnx MEMORY_BYTES MODE`."""

from __future__ import annotations

import resource
import sys

import onnx

FOLD_THRESHOLD = "64KB"
"""onnxsim folds no constant larger than this; what folding may cost is decided in fold-constants."""

FOREIGN_FUSIONS = ["fuse_attention", "fuse_gqa", "fuse_qkv", "fuse_rope"]
"""Optimizers of onnxsim that make operators of ONNX Runtime's own domain, which no target has."""


def main(source: str, target: str, memory_bytes: int, mode: str) -> None:
    """Simplifies one file into another, within so much address space; in mode `fold` without graph optimizations."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    import onnxsim

    # Fusions into weights are ours (the weights are not here), and so is everything inside subgraphs and functions.
    simplified, _ = onnxsim.simplify(
        onnx.load(source),
        check_n=0,
        perform_optimization=mode != "fold",
        skip_fuse_bn=True,
        skipped_optimizers=FOREIGN_FUSIONS,
        tensor_size_threshold=FOLD_THRESHOLD,
        include_subgraph=False,
    )
    onnx.save(simplified, target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
