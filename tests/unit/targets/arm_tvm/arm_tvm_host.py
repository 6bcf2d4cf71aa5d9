"""Runs a model as this target compiles it, in this process and for this machine."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir

from targets.arm_tvm.graph.fold_constants import fold_constants
from targets.arm_tvm.graph.lower import import_relax
from targets.arm_tvm.graph.packing import pack_graph
from targets.arm_tvm.kernels.floating_point.workload import ConvWorkload, blocks
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


def blocked(values: Any, lanes: int) -> Any:
    """A tensor (N, C, H, W) in blocks of channels."""
    batch, channels, height, width = values.shape
    full = np.zeros((batch, blocks(channels, lanes) * lanes, height, width), values.dtype)
    full[:, :channels] = values
    return np.ascontiguousarray(full.reshape(batch, -1, lanes, height, width).transpose(0, 1, 3, 4, 2))


def convolved(workload: ConvWorkload, source: Any, weights: Any, bias: Any, residual: Any) -> Any:
    """What a workload computes, by NumPy."""
    top, left, bottom, right = workload.padding
    padded = np.pad(source, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = workload.result
    total = np.zeros((workload.batch, workload.filters, rows, columns)) + bias[:, None, None]
    for row in range(workload.kernel[0]):
        for column in range(workload.kernel[1]):
            part = padded[:, :, row * workload.dilations[0] :, column * workload.dilations[1] :]
            part = part[:, :, :: workload.strides[0], :: workload.strides[1]][:, :, :rows, :columns]
            parts = np.split(part, workload.groups, axis=1), np.split(weights[:, :, row, column], workload.groups)
            sums = [np.einsum("nchw,oc->nohw", *pair) for pair in zip(*parts, strict=True)]
            total += np.concatenate(sums, axis=1)
    for step in workload.epilogue:
        total = total + residual if step == "add" else np.maximum(total, 0)
        total = np.minimum(total, 6) if step.startswith("clip") else total
    return total


def parallel_loops(function: Any) -> list[int]:
    """Iterations of every loop of a kernel that is spread over the threads."""
    return [int(count) for count in re.findall(r"T\.parallel\((\d+)\)", function.script())]
