"""What plugins may import: the names of `compiler.target`, as docs/writing-a-target.md lists them, and nothing else."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import compiler.target
import compiler.target.testing

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "writing-a-target.md").read_text("utf-8")
SECTION = PAGE.partition("\n## What you may import\n")[2].partition("\n## ")[0]
PLUGINS = sorted(file for folder in ("targets", "examples") for file in (ROOT / folder).rglob("*.py"))


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file imports from `compiler`; the name is empty for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "compiler")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "compiler":
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_page_lists_exactly_the_public_names() -> None:
    assert re.findall(r"^\| `(\w+)` \|", SECTION, re.MULTILINE) == compiler.target.__all__


@pytest.mark.parametrize("name", compiler.target.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(compiler.target, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Driver'"):
        _ = compiler.target.Driver


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_plugin_imports_public_names_of_the_contract_alone(file: Path) -> None:
    public = {("compiler.target", name) for name in compiler.target.__all__}
    if file.name.startswith("test_"):
        public |= {("compiler.target.testing", name) for name in compiler.target.testing.__all__}
    assert set(_imported(ast.parse(file.read_text("utf-8")))) - public == set()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_a_block_of_the_page_imports_public_names_alone(block: str) -> None:
    modules = {module for module, _ in _imported(ast.parse(block))}
    assert modules <= {"compiler.target", "compiler.target.testing"}


@pytest.mark.parametrize("package", ["compiler", "targets"])
def test_a_package_says_that_it_has_types_and_ships_the_mark(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    assert "py.typed" in tools["setuptools"]["package-data"][package]
