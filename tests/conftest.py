"""What tests of every kind share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toolchain_cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One cache for the whole run, whichever process: zig's C library and the aarch64 runtime are made once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "toolchain-cache"
    folder.mkdir(exist_ok=True)
    return folder
