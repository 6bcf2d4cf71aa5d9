from pathlib import Path

import pytest

from compiler.profile import HardwareProfile, load_profile


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session: zig's libc stubs and the aarch64 libraries are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def pi5() -> HardwareProfile:
    return load_profile("raspberry-pi-5")
