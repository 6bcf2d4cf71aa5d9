"""ONNX files in: read, check, bind shapes, cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from compiler.model.frontend.bind import SizeRange, bind_shapes, first_dims, free_dims
from compiler.model.frontend.cut import cut_model
from compiler.model.frontend.extract import extract_prefix, extract_suffix
from compiler.model.frontend.fix import fix_inputs
from compiler.model.frontend.infer import correct_outputs
from compiler.model.frontend.inputs import describe_inputs, describe_outputs
from compiler.model.frontend.kinds import input_kinds
from compiler.model.frontend.read import Imported, read_model

__all__ = [
    "Imported",
    "SizeRange",
    "bind_shapes",
    "correct_outputs",
    "cut_model",
    "describe_inputs",
    "describe_outputs",
    "extract_prefix",
    "extract_suffix",
    "first_dims",
    "fix_inputs",
    "free_dims",
    "import_model",
    "input_kinds",
    "read_model",
]


def import_model(path: str | Path, *, ranges: Mapping[str, SizeRange], where: str = "") -> ir.Model:
    """Reads, checks and binds a model: `read_model` then `bind_shapes`, for callers that need no notes.

    Args:
        path: An .onnx file.
        ranges: Dimension name, or `batch` → sizes.
        where: What asked for these sizes, for messages.

    Raises:
        InvalidModel: The file is no well-formed model.
        UnsupportedModel: It is outside what this version reads.
        FleetError: The sizes do not fit the model.
    """
    return bind_shapes(read_model(path).model, ranges, where=where).model
