"""What a process of its own does: ONNX's checker and strict inference on a model, the verdict as JSON.

It imports nothing but onnx, so that it starts fast, and bounds its own memory. See `apart.py` for why it exists.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import onnx

MODEL, VERDICT = "model.onnx", "verdict.json"
UNWRITTEN = 74
"""Exit code where the verdict cannot be written, which is not the model's fault; EX_IOERR of sysexits.h."""

MEMORY_BYTES = 4 << 30
"""What checking a model without weights may take; a damaged file can ask for any amount."""


def prepare() -> tuple[str, ...]:
    """onnx is imported with this module. Returns no file that must not change: the parent has imported the same."""
    return ()


def check(folder: str, cpu_s: str, mode: str) -> None:
    """Checks the folder's model, in mode `strict` with strict inference, writes the verdict, and ends this process."""
    _bound(int(cpu_s))
    warnings.simplefilter("ignore")  # the parent's reader says what matters
    proto = onnx.ModelProto.FromString((Path(folder) / MODEL).read_bytes())
    answer = verdict(proto, strict=mode == "strict")
    try:
        (Path(folder) / VERDICT).write_text(json.dumps(answer), encoding="utf-8")
    except OSError:
        os._exit(UNWRITTEN)
    os._exit(0)  # unloading takes longer than the checks of most models


def verdict(proto: onnx.ModelProto, *, strict: bool) -> dict[str, str]:
    """Which check failed (`failed` of `apart.Verdict`; nothing where none did) and what it said."""
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError, MemoryError) as error:
        return {"failed": "checker", "said": f"{error}" or type(error).__name__}
    said = _inference(proto, strict=strict)
    if not said:
        return {"failed": "", "said": ""}
    _forget_shapes(proto.graph)
    if not _inference(proto, strict=strict):
        return {"failed": "stale", "said": said}
    for item in proto.graph.output:
        if item.type.HasField("tensor_type"):
            item.type.tensor_type.ClearField("shape")
    return {"failed": "inference" if _inference(proto, strict=strict) else "stale-outputs", "said": said}


def _inference(proto: onnx.ModelProto, *, strict: bool) -> str:
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=strict)
        return ""
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, MemoryError) as error:
        return f"{error}" or type(error).__name__


def _forget_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _forget_shapes(attribute.g)


def _bound(cpu_s: int) -> None:
    """Bounds memory and processor time; the parent's clock would also count what other processes take."""
    try:
        import resource
    except ImportError:  # no such bounds on this system; the parent's time limit still holds
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
