from pathlib import Path

import pytest

from compiler.fleet.profile import HardwareProfile, load_profile


@pytest.fixture(scope="session")
def cache_dir(toolchain_cache: Path) -> Path:
    """Where zig's libc stubs and the aarch64 libraries are kept."""
    return toolchain_cache


@pytest.fixture
def pi5() -> HardwareProfile:
    return load_profile("raspberry-pi-5")
