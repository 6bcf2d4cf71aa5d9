"""How a training step is computed on this machine: the fastest of several configurations, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import ceil, prod, sqrt

import onnx_ir as ir
import torch

from compiler.compress.recover.operators import Tensor
from compiler.fleet.machine import free_memory_bytes

_TRIALS = 3
"""Timed steps of each configuration. The fastest counts: other load on the machine only makes a step slower."""


@dataclass(frozen=True)
class ExecutionConfig:
    """How the steps are computed.

    Args:
        dtype: What layers compute in: `float32`, or `bfloat16` with weights and sums kept in float32.
        is_channels_last: Whether images are stored channels last (NHWC).
        segments: Segments of the graph for activation checkpointing, see `network.run`.
        device: PyTorch's name of the device.
        parts: Parts of a batch that are computed in parallel: several threads in one small layer gain little.
        threads: Threads for each part.
    """

    dtype: str = "float32"
    is_channels_last: bool = False
    segments: int = 1
    device: str = "cpu"
    parts: int = 1
    threads: int = 1

    def __str__(self) -> str:
        layout = "channels last" if self.is_channels_last else "channels first"
        pieces = f", recomputed in {self.segments} segments" if self.segments > 1 else ""
        parts = f", {self.parts} parts of a batch in parallel" if self.parts > 1 else ""
        return f"{self.dtype}, {layout}, {self.device}{parts}{pieces}"

    def context(self) -> Tensor:
        """Context in which layers compute in this precision and on this share of the cores."""
        # per calling thread: each part of a batch is computed by a thread of the pool
        torch.set_num_threads(self.threads)
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def lay_out(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, in this memory layout."""
        tensor = tensor.to(self.device)
        last = self.is_channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def choose_config(
    step: Callable[[ExecutionConfig], object], *, device: str, segments: int, cores: int, samples: int, seconds: float
) -> ExecutionConfig:
    """The configuration in which a step takes the least time here, of those tried within the time limit.

    Args:
        step: Computes one step, without changing the weights.
        device: PyTorch's name of the device.
        segments: Segments of the graph.
        cores: Threads in all; parts of a batch that run in parallel have at least one sample each.
        samples: Samples of a step.
        seconds: Time limit of the trials; the first two configurations are tried in any case.
    """
    end, times = time.monotonic() + seconds, dict[ExecutionConfig, float]()
    # on a GPU one part fills the device; on a CPU one part per core scales best, so it is tried first
    many = min(cores, samples) if device == "cpu" else 1
    layouts = (("float32", True), ("bfloat16", True), ("bfloat16", False), ("float32", False))
    for parts, (dtype, is_last) in product(dict.fromkeys((many, 1)), layouts):
        config = ExecutionConfig(dtype, is_last, segments, device, parts, max(1, cores // parts))
        times[config] = _fastest(step, config)
        if time.monotonic() > end and len(times) > 1:
            break
    return min(times, key=lambda config: times[config])


def _fastest(step: Callable[[ExecutionConfig], object], config: ExecutionConfig) -> float:
    step(config)  # warm-up: the first step allocates memory and chooses kernels
    return min(_seconds(step, config) for _ in range(_TRIALS))


def _seconds(step: Callable[[ExecutionConfig], object], config: ExecutionConfig) -> float:
    started = time.perf_counter()
    step(config)
    if config.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def segments_for(model: ir.Model, *, batch: int, memory_bytes: int | None) -> int:
    """Segments for activation checkpointing: 1 where activations fit, else the square root of the number of nodes."""
    activation_bytes = sum(_bytes(value, batch) for node in model.graph for value in node.outputs)
    room = free_memory_bytes() // 2 if memory_bytes is None else memory_bytes
    return 1 if activation_bytes <= room else ceil(sqrt(len(model.graph)))


def _bytes(value: ir.Value, batch: int) -> int:
    sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    fixed = not value.shape or isinstance(value.shape[0], int)
    return 4 * prod(sizes) * (1 if fixed else batch)
