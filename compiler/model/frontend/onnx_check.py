"""A program of its own: ONNX's checker and strict inference on the message at stdin, the verdict as JSON at stdout.

It imports nothing but onnx, so that it starts fast, and bounds its own memory. See `apart.py` for why it exists.
"""

from __future__ import annotations

import json
import sys

import onnx

MEMORY_BYTES = 4 << 30
"""What checking a model without weights may take; a damaged file can ask for any amount."""


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


if __name__ == "__main__":
    _bound(int(sys.argv[1]))
    answer = verdict(onnx.ModelProto.FromString(sys.stdin.buffer.read()), strict="--strict" in sys.argv)
    sys.stdout.write(json.dumps(answer))
