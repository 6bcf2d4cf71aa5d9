"""The report people read, made from the manifests of a build alone."""

from __future__ import annotations

from pathlib import Path

from compiler.artifact.report.read import Build, Device, payload_bytes, read_build, read_device
from compiler.store.atomic import write_atomic
from compiler.store.disk import output_errors

REPORT = "report.html"

__all__ = ["REPORT", "Build", "Device", "payload_bytes", "read_build", "read_device", "write_report"]


def write_report(build: Build, *, previous: Build | None = None, metrics: Path | None = None) -> Path:
    """Writes a build's page into its folder, whole or not at all; the same manifests give the same bytes.

    Args:
        build: What the folder holds.
        previous: A build to tell the differences to.
        metrics: What a server of the build gave under `/metrics`, to be shown beside what was measured here.

    Returns:
        The page's path.

    Raises:
        DataError: The metrics cannot be read, or are of other builds.
        OutputError: The folder cannot be written.
        StorageError: The disk is full.
    """
    from compiler.artifact.report.page import (
        render_page,  # half a second of imports: only who writes a page pays for them
    )

    production = None
    if metrics is not None:
        from compiler.artifact.report.production import compare_with_production, read_metrics

        production = compare_with_production(build, read_metrics(metrics), where=str(metrics))
    text = render_page(build, previous, production)
    with output_errors(build.folder):
        write_atomic(build.folder / REPORT, text.encode())
    return build.folder / REPORT
