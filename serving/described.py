"""What the protocol tells of a served model: its tensors, its configuration as Triton has it, and its statistics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.target import TensorSpec
from serving.answers import Answer
from serving.protocol import DATATYPES, Signature

PLATFORM = "fleetc"


def describe_tensors(name: str, version: str, signature: Signature) -> dict[str, Any]:
    """What a model takes and gives."""
    return {
        "name": name,
        "versions": [version],
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in signature.inputs],
        "outputs": [_tensor(spec) for spec in signature.outputs],
    }


def describe_configuration(name: str, signature: Signature) -> dict[str, Any]:
    """Triton's model configuration, as far as it is true here."""
    skip = 1 if signature.batch else 0
    sides = {
        side: [
            {"name": spec.name, "data_type": f"TYPE_{DATATYPES[spec.dtype]}", "dims": _sizes(spec.shape)[skip:]}
            for spec in specs
        ]
        for side, specs in (("input", signature.inputs), ("output", signature.outputs))
    }
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": signature.largest if signature.batch else 0,
        **sides,
        "instance_group": [{"name": name, "kind": "KIND_CPU", "count": 1}],
    }


@dataclass
class Statistics:
    """Sums since the start, as Triton's statistics extension has them; times in nanoseconds."""

    last_ms: int = 0
    inferences: int = 0
    executions: dict[int, tuple[int, int]] = field(default_factory=dict)
    sums: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(self, answer: Answer, size: int, seconds: float) -> None:
        """Counts a request that was answered.

        Args:
            answer: What came of it.
            size: Its items.
            seconds: What it took in all.
        """
        self.last_ms = time.time_ns() // 1_000_000
        self.inferences += size
        self.add("success", seconds)
        self.add("queue", answer.queue_s)
        self.add("compute_infer", answer.run_s)
        self.add("compute_output", max(0.0, seconds - answer.queue_s - answer.run_s))
        if answer.is_first:
            count, ns = self.executions.get(answer.batch, (0, 0))
            self.executions[answer.batch] = (count + 1, ns + int(answer.run_s * 1e9))

    def add(self, key: str, seconds: float, count: int = 1) -> None:
        """One more of a kind."""
        known, total = self.sums.get(key, (0, 0))
        self.sums[key] = (known + count, total + int(seconds * 1e9))

    def rows(self) -> dict[str, Any]:
        """What the extension calls them."""
        kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "last_inference": self.last_ms,
            "inference_count": self.inferences,
            "execution_count": sum(count for count, _ in self.executions.values()),
            "inference_stats": {
                kind: dict(zip(("count", "ns"), self.sums.get(kind, (0, 0)), strict=True)) for kind in kinds
            },
            "batch_stats": [
                {"batch_size": size, "compute_infer": {"count": count, "ns": ns}}
                for size, (count, ns) in sorted(self.executions.items())
            ],
        }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": _sizes(spec.shape)}


def _sizes(shape: Sequence[int | str]) -> list[int]:
    """A shape as the protocol has it: -1 for what may vary."""
    return [size if isinstance(size, int) else -1 for size in shape]
