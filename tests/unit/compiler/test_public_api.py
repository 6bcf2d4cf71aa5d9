from __future__ import annotations

import subprocess
import sys

import pytest

import compiler

PUBLIC = {
    "BuildOptions",
    "CompilerError",
    "build_fleet",
    "find_target",
    "import_model",
    "list_targets",
    "load_fleet",
    "load_profile",
    "make_plan",
    "plan_fleet",
    "read_artifact",
}


def test_the_public_api_is_the_listed_names_and_no_more_than_twelve() -> None:
    assert set(compiler.__all__) == PUBLIC
    assert len(PUBLIC) <= 12


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    assert getattr(compiler, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compile'"):
        _ = compiler.compile


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, compiler; sys.exit(any(m in sys.modules for m in ('numpy', 'onnx', 'click')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
