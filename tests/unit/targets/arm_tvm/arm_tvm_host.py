"""Runs a model as this target compiles it, in this process and for this machine."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from targets.arm_tvm.graph.fold_constants import fold_constants
from targets.arm_tvm.graph.lower import import_relax
from targets.arm_tvm.graph.packing import pack_graph
from targets.arm_tvm.kernels.machine import machine_of
from targets.arm_tvm.options import Options

Array = np.ndarray
NEON = Options("aarch64-linux-gnu", "cortex-a76")
AVX2 = Options("x86_64-linux-gnu", "haswell")


def run_on_host(model: ir.Model, inputs: dict[str, Array], options: Options = NEON) -> dict[str, Array]:
    """The outputs of a model whose kernels are written for the options' machine, as LLVM compiles them for this one."""
    import tvm
    from tvm import relax

    folded = fold_constants(import_relax(model, options))
    packed = pack_graph(folded, machine_of(options), schedule={}) or folded
    executable = tvm.compile(packed, target="llvm")
    names = [str(value.name) for value in model.graph.inputs]
    results = relax.VirtualMachine(executable, tvm.cpu())["main"](*[tvm.runtime.tensor(inputs[name]) for name in names])
    outputs = [results] if hasattr(results, "numpy") else list(results)
    return {str(value.name): result.numpy() for value, result in zip(model.graph.outputs, outputs, strict=True)}
