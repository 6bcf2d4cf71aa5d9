"""What the tests of rollouts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.rollout.fleet import ONE, SICK, TWO, make_repository


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with three builds; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    make_repository(folder, ONE, TWO, SICK)
    return folder
