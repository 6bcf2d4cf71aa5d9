#!/usr/bin/env python3
"""How long ONNX Runtime's products of packed weights take by bits and block, into benchmarks/weight_kernels.json.

    PYTHONPATH=. scripts/bench_weight_kernels.py

One row, as for one token, by many matrices of the same size, more than the caches hold: each comes from memory, as in a
model. Seconds are of the processor on one thread, the least of some runs. 6 bits are two products, of 4 and of 2 bits.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from bench_record import commit, machine, versions

from compiler.model.onnx_runtime import open_session

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((576, 1536), (1536, 576), (576, 192))
COUNT, RUNS = 80, 15
PARTS = {4: (4,), 6: (4, 2), 8: (8,)}
LEVELS = {"float32": 1, "int8": 4}
"""Activations → attribute accuracy_level of MatMulNBits."""


def products(inputs: int, outputs: int, bits: int, block: int, level: int) -> bytes:
    """A model of many products of one row."""
    random, blocks = np.random.default_rng(0), -(-inputs // block)
    x = ir.val("x", ir.DataType.FLOAT, [1, inputs])
    nodes, weights, results = [], [], []
    for number in range(COUNT):
        packed = random.integers(0, 256, (outputs, blocks, block * bits // 8), dtype=np.uint8)
        scale = random.random((outputs, blocks), dtype=np.float32)
        zero = random.integers(0, 256, (outputs, -(-blocks * bits // 8)), dtype=np.uint8)
        held = [_constant(f"{name}{number}", array) for name, array in (("w", packed), ("s", scale), ("z", zero))]
        how = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": level}
        node = ir.node("MatMulNBits", [x, *(held if bits < 8 else held[:2])], how, domain="com.microsoft")
        node.outputs[0].name, node.outputs[0].dtype = f"y{number}", ir.DataType.FLOAT
        node.outputs[0].shape = ir.Shape([1, outputs])
        nodes.append(node)
        results.append(node.outputs[0])
        weights += [value for value in node.inputs[1:] if value is not None]
    opsets = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], results, nodes=nodes, initializers=weights, opset_imports=opsets, name="products")
    return bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())


def _constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def microseconds(inputs: int, models: list[bytes], runs: int) -> float:
    """Of one product, in all parts that it has."""
    sessions = [open_session(model, is_optimized=True) for model in models]
    feeds = {"x": np.random.default_rng(1).standard_normal((1, inputs)).astype(np.float32)}
    least = float("inf")
    for _ in range(runs):
        started = time.process_time()
        for session in sessions:
            session.run(None, feeds)
        least = min(least, time.process_time() - started)
    return least / COUNT * 1e6


def main() -> None:
    """Times every format and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/weight_kernels.json")
    place, rows = parser.parse_args().out, list[dict[str, Any]]()
    for inputs, outputs in SIZES:
        for activations, level in LEVELS.items():
            for bits, parts in PARTS.items():
                for block in (32, 64, 128):
                    runs = RUNS if activations == "int8" or bits == 4 else 2  # those without a kernel take milliseconds
                    models = [products(inputs, outputs, part, block, level) for part in parts]
                    took = microseconds(inputs, models, runs)
                    rows.append({"inputs": inputs, "outputs": outputs, "activations": activations})
                    rows[-1] |= {"bits": bits, "block": block, "microseconds": round(took, 1)}
                    print(json.dumps(rows[-1]), flush=True)
    load = [round(number, 1) for number in os.getloadavg()]
    record = {
        **commit(),
        "machine": machine(),
        "load average": load,
        "versions": versions(["onnxruntime"]),
        "rows": rows,
    }
    place.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
