"""One observation of a built artifact in a child process, kept in the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler.artifact import artifact_to_dict
from compiler.driver.stages.compile import Built
from compiler.driver.stages.context import BuildContext
from compiler.fleet.detect import host_fingerprint
from compiler.model.numerics import Arrays, arrays_digest, write_arrays
from compiler.store import Stage, canonical_json
from compiler.store.digests import code_digest
from compiler.store.scratch import scratch_folder
from compiler.target.isolate import run_child

MEASURED_STAGES = frozenset({"footprint", "profile", "race"})
"""Stages whose results are observations of this machine at one time: no second observation is the same."""


def observe(
    context: BuildContext, work: str, builds: Sequence[tuple[Built, Arrays]], *, times: int = 1, **more: Any
) -> list[dict[str, Any]]:
    """Does one work of `compiler.target.worker_measure` on built artifacts, or takes its results from the store.

    Args:
        context: The device.
        work: `footprint`, `race` or `profile`; the name of the stage.
        builds: The artifacts, each with its inputs.
        times: Child processes to ask, one after another.
        more: Further arguments of the work.

    Returns:
        What each child said.

    Raises:
        CompilerError: Whatever the work raised, or how the child ended.
    """
    parts = (
        ("builds", canonical_json([built.entry.digest for built, _ in builds])),
        ("inputs", canonical_json([arrays_digest(inputs) for _, inputs in builds])),
        ("arguments", canonical_json({**more, "times": times})),
        ("host", host_fingerprint()),
        ("compiler", code_digest("compiler.target.worker_measure")),
    )

    def make(folder: Path) -> None:
        with scratch_folder() as scratch:
            request = _request(builds, scratch) | more
            where = f"{context.name}: {work}"
            found = [
                run_child(work, dict(request), folder=scratch, limits=context.options.child, where=where)
                for _ in range(times)
            ]
        (folder / "observed.json").write_text(json.dumps(found), encoding="utf-8")

    entry = context.store.obtain(Stage(work, parts), make)
    values: list[dict[str, Any]] = json.loads((entry.files / "observed.json").read_text(encoding="utf-8"))
    return values


def _request(builds: Sequence[tuple[Built, Arrays]], folder: Path) -> dict[str, Any]:
    """One artifact by its own name, several in lists."""
    paths = [folder / f"in{index}.npz" for index in range(len(builds))]
    for path, (_, inputs) in zip(paths, builds, strict=True):
        write_arrays(path, inputs)
    artifacts = [{**artifact_to_dict(built.artifact), "root": str(built.artifact.root)} for built, _ in builds]
    if len(builds) == 1:
        return {"artifact": artifacts[0], "inputs": str(paths[0])}
    return {"artifacts": artifacts, "inputs": [str(path) for path in paths]}
