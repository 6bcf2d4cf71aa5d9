"""From a path to an ONNX protobuf: what kind of file it is, and whether it can be read."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compiler.errors import InvalidModel
from compiler.model.frontend.wire import split

PROTOBUF_LIMIT_BYTES = 2**31 - 1
"""Protobuf's own bound on one message; a larger model keeps its weights in external data."""

_FOREIGN: tuple[tuple[bytes, int, str, str], ...] = (
    (b"PK\x03\x04", 0, "a zip archive (PyTorch's .pt and Keras' .keras are such)", "Export it with torch.onnx.export."),
    (b"\x80", 0, "a Python pickle", "Export it with torch.onnx.export; fleetc never opens pickles."),
    (b"\x89HDF", 0, "an HDF5 file (Keras .h5)", "Convert it with tf2onnx."),
    (b"TFL3", 4, "a TensorFlow Lite model", "Convert it with tf2onnx --tflite."),
    (b"ORTM", 4, "an ONNX Runtime .ort file", "Use the .onnx file it was made from."),
    (b"version https://git-lfs", 0, "a Git LFS pointer, not the file itself", "Run `git lfs pull`."),
    (b"\x1f\x8b", 0, "gzip-compressed", "Unpack it first."),
    (b"<?xml", 0, "XML (OpenVINO IR?)", "Use the ONNX model it was made from."),
    (b"\x93NUMPY", 0, "a NumPy array", "Give the ONNX model here."),
    (b"{", 0, "JSON or text", "Give the binary .onnx file."),
)
"""First bytes, where they stand, what such a file is, and what to do: the mistakes people make."""


def map_file(path: Path) -> mmap.mmap:
    """The file as read-only mapped memory.

    Raises:
        InvalidModel: It is missing, no regular file, unreadable, empty, or too large for one protobuf message.
    """
    try:
        if path.is_dir():
            raise InvalidModel("this is a folder, not an ONNX file", where=str(path), remedy=_candidates(path))
        if not path.exists():
            raise InvalidModel("there is no such file", where=str(path), remedy=_candidates(path.parent))
        if not path.is_file():
            raise InvalidModel("this is no regular file", where=str(path), remedy="Give an .onnx file.")
        size = path.stat().st_size
        if size == 0:
            raise InvalidModel("the file is empty (0 bytes)", where=str(path), remedy="Export or copy it again.")
        if size > PROTOBUF_LIMIT_BYTES:
            raise InvalidModel(
                f"the file is {size} bytes; one ONNX file holds at most {PROTOBUF_LIMIT_BYTES}",
                where=str(path),
                remedy="Save the model with external data: onnx.save(..., save_as_external_data=True).",
            )
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidModel(
            f"the file cannot be read: {reason}", where=str(path), remedy="Check the path and its permissions."
        ) from error


@dataclass(frozen=True)
class Parsed:
    """A model message without its large weights.

    Args:
        proto: Everything else.
        parts: Index among the graph's initializers → the raw data left in the file.
    """

    proto: onnx.ModelProto
    parts: Mapping[int, memoryview]


def parse(buffer: memoryview, *, path: Path) -> Parsed:
    """The protobuf message in the buffer.

    Raises:
        InvalidModel: The bytes are another kind of file, or a damaged one.
    """
    _refuse_foreign(bytes(buffer[:32]), path)
    try:
        halves = split(buffer)
        return Parsed(onnx.ModelProto.FromString(halves.message), halves.parts)
    except DecodeError as error:
        raise InvalidModel(
            "the file is not ONNX, is cut off, or is nested too deeply to be read",
            where=str(path),
            remedy="Compare its size and digest with the original, and copy or export it again.",
        ) from error


def _refuse_foreign(head: bytes, path: Path) -> None:
    for magic, offset, kind, remedy in _FOREIGN:
        if head[offset:].startswith(magic):
            raise InvalidModel(f"the file is not ONNX but {kind}", where=str(path), remedy=remedy)


def _candidates(folder: Path) -> str:
    """A hint naming the .onnx files that are there."""
    try:
        names = sorted(entry.name for entry in folder.glob("*.onnx"))[:5]
    except OSError:
        names = []
    return f"There is: {', '.join(names)}." if names else "Give the path of an .onnx file."
