"""Every command of docs/production.md is run, in order: served, mirrored, rolled out, and come back.

The page's twenty agents take some minutes; without FLEETC_SLOW there are two.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.docs.test_guide import GUIDE, Walk, check, steps_of, write_model

STEPS = steps_of((GUIDE.parent / "production.md").read_text(encoding="utf-8"))
AGENTS = 20 if "FLEETC_SLOW" in os.environ else 2


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("production")
    write_model(folder / "model.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTS", str(AGENTS))
        patch.setenv("POLL_S", "0.3" if AGENTS == 2 else "8")  # twenty that look once a second take two cores
        yield Walk(folder, STEPS)
    for file in folder.glob("*.pid"):  # servers and agents that a failure left
        for number in file.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGTERM)


@pytest.mark.parametrize("index", range(len(STEPS)), ids=[step.command[:60] for step in STEPS])
def test_a_command_of_the_page_ends_as_it_says(index: int, walk: Walk) -> None:
    check(walk.result(index), STEPS[index])


def test_every_device_is_where_the_page_leaves_it(walk: Walk) -> None:
    walk.result(len(STEPS) - 1)
    devices = sorted((walk.folder / "devices").iterdir())
    shipped = (walk.folder / "v2" / "kiosk" / "manifest.json").read_bytes()
    assert len(devices) == AGENTS
    for device in devices:
        assert (device / "current" / "artifact" / "manifest.json").read_bytes() == shipped, device
