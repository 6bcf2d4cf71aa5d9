"""The delivered folder: its manifest written and read, the report, and the difference of two builds."""

from __future__ import annotations

from compiler.artifact.artifact import (
    Artifact,
    Evidence,
    artifact_from_dict,
    artifact_to_dict,
    leaves_folder,
)

__all__ = ["Artifact", "Evidence", "artifact_from_dict", "artifact_to_dict", "leaves_folder"]
