"""A failure as one file: the ONNX model, with its inputs, seed, check and message in its metadata."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from compiler.model.numerics import write_arrays
from fuzzing.judge import Verdict
from fuzzing.sketch import Graph, run_runtime

_PREFIX = "fleetc.fuzz."


@dataclass(frozen=True)
class Saved:
    """What a file of a failure holds."""

    graph: Graph
    check: str
    seed: str
    message: str


def save_failure(folder: Path, graph: Graph, verdict: Verdict, *, seed: str) -> Path:
    """Writes the model; the name says check and outcome, and tells failures apart."""
    buffer = io.BytesIO()
    write_arrays(buffer, graph.inputs)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.metadata_props[:]
    facts = {
        "inputs": base64.b64encode(buffer.getvalue()).decode(),
        "seed": seed,
        "check": verdict.check,
        "message": f"{verdict.outcome}: {verdict.message}",
    }
    helper.set_model_props(model, {f"{_PREFIX}{key}": value for key, value in facts.items()})
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(graph.model.SerializeToString()).hexdigest()[:8]
    check = "all" if "," in verdict.check else verdict.check
    path = folder / f"{check.replace(':', '-')}-{verdict.outcome.replace(' ', '-')}-{digest}.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def load_failure(path: Path) -> Saved:
    """Reads it back; what is expected is computed anew by ONNX Runtime on the whole graph.

    Raises:
        ValueError: The file is no failure that was saved here, or ONNX Runtime does not run it.
    """
    model = onnx.load(path)
    facts = {prop.key.removeprefix(_PREFIX): prop.value for prop in model.metadata_props}
    if not {"inputs", "seed", "check", "message"} <= facts.keys():
        raise ValueError(f"{path} has no inputs in its metadata: it was not saved by scripts/fuzz_models.py")
    with np.load(io.BytesIO(base64.b64decode(facts["inputs"]))) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    del model.metadata_props[:]
    expected = run_runtime(model, inputs)
    if expected is None:
        raise ValueError(f"{path}: ONNX Runtime does not run the model")
    return Saved(Graph(model, inputs, expected), facts["check"], facts["seed"], facts["message"])
