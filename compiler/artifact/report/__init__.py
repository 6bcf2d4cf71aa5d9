"""The report people read, made from the manifests of a build alone."""

from __future__ import annotations

from pathlib import Path

from compiler.artifact.report.read import Build, Device, payload_bytes, read_build, read_device
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors

REPORT = "report.html"

__all__ = ["REPORT", "Build", "Device", "payload_bytes", "read_build", "read_device", "write_report"]


def write_report(build: Build, *, previous: Build | None = None) -> Path:
    """Writes a build's page into its folder, whole or not at all; the same manifests give the same bytes.

    Args:
        build: What the folder holds.
        previous: A build to tell the differences to.

    Returns:
        The page's path.

    Raises:
        OutputError: The folder cannot be written.
        StorageError: The disk is full.
    """
    from compiler.artifact.report.page import (
        render_page,  # half a second of imports: only who writes a page pays for them
    )

    text = render_page(build, previous)
    with output_errors(build.folder):
        write_atomic(build.folder / REPORT, text.encode())
    return build.folder / REPORT
