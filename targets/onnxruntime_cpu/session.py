"""A delivered model in ONNX Runtime, with the settings of its artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from compiler.target import Evidence, OnnxRuntimeSession, available_cpus


class SessionRunner(OnnxRuntimeSession):
    """A delivered model, opened on this machine with its settings; `note` says what its figures are not."""

    evidence = Evidence.HOST

    def __init__(self, model: Path, config: Path, note: str) -> None:
        self.note = note
        threads, operators = threads_of(json.loads(config.read_text(encoding="utf-8")))
        super().__init__(model, is_optimized=True, threads=threads, operators=operators)


def threads_of(config: Mapping[str, int]) -> tuple[int, int]:
    """Threads of one operator, no more than this machine has processors, and how many operators run at once."""
    return min(config["intra_op_num_threads"], available_cpus()), config["inter_op_num_threads"]
