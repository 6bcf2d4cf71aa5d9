"""How a step is computed on this machine: measured, not guessed."""

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
"""Steps of every way that are timed; the fastest counts, what else the machine does only takes away."""


@dataclass(frozen=True)
class ExecutionConfig:
    """How the steps are computed.

    Args:
        dtype: What layers compute in: `float32`, or `bfloat16` with weights and sums kept in float32.
        is_channels_last: Whether pictures lie in memory pixel by pixel.
        segments: Pieces of the graph, see `network.run`.
        device: PyTorch's name of the device.
        parts: Into how many parts a batch is divided that are computed side by side: cores share small layers badly.
        threads: Threads that each part is computed with.
    """

    dtype: str = "float32"
    is_channels_last: bool = False
    segments: int = 1
    device: str = "cpu"
    parts: int = 1
    threads: int = 1

    def __str__(self) -> str:
        layout = "channels last" if self.is_channels_last else "channels first"
        pieces = f", computed again in {self.segments} pieces" if self.segments > 1 else ""
        parts = f", {self.parts} parts of a batch side by side" if self.parts > 1 else ""
        return f"{self.dtype}, {layout}, {self.device}{parts}{pieces}"

    def context(self) -> Tensor:
        """Inside it, layers compute in the way's precision and on its share of the cores."""
        torch.set_num_threads(self.threads)  # of the thread that calls
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def lay_out(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, in the way's memory layout."""
        tensor = tensor.to(self.device)
        last = self.is_channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def choose_way(
    step: Callable[[ExecutionConfig], object], *, device: str, segments: int, cores: int, samples: int, seconds: float
) -> ExecutionConfig:
    """The way in which a step takes the least time here; of those that were tried in time.

    Args:
        step: Computes one step, without changing the weights.
        device: Where.
        segments: Pieces of the graph.
        cores: Threads in all; where they compute parts of a batch side by side, each of at least one sample.
        samples: Samples of a step.
        seconds: No further way is tried after these; the first two are, whatever they take.
    """
    end, times = time.monotonic() + seconds, dict[ExecutionConfig, float]()
    many = min(cores, samples) if device == "cpu" else 1
    layouts = (("float32", True), ("bfloat16", True), ("bfloat16", False), ("float32", False))
    for parts, (dtype, is_last) in product(dict.fromkeys((many, 1)), layouts):
        way = ExecutionConfig(dtype, is_last, segments, device, parts, max(1, cores // parts))
        times[way] = _fastest(step, way)
        if time.monotonic() > end and len(times) > 1:
            break
    return min(times, key=lambda way: times[way])


def _fastest(step: Callable[[ExecutionConfig], object], way: ExecutionConfig) -> float:
    step(way)
    return min(_seconds(step, way) for _ in range(_TRIALS))


def _seconds(step: Callable[[ExecutionConfig], object], way: ExecutionConfig) -> float:
    started = time.perf_counter()
    step(way)
    if way.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def segments_for(model: ir.Model, *, batch: int, memory_bytes: int | None) -> int:
    """Into how many pieces the graph must be divided for its values to fit: 1, or the root of the number of nodes."""
    kept = sum(_bytes(value, batch) for node in model.graph for value in node.outputs)
    room = free_memory_bytes() // 2 if memory_bytes is None else memory_bytes
    return 1 if kept <= room else ceil(sqrt(len(model.graph)))


def _bytes(value: ir.Value, batch: int) -> int:
    sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    fixed = not value.shape or isinstance(value.shape[0], int)
    return 4 * prod(sizes) * (1 if fixed else batch)
