"""The picture and the table of packages in docs/how-it-works.md are those of setup.cfg and of today's docstrings."""

from __future__ import annotations

import configparser
import shutil
from pathlib import Path

import pytest
from draw_packages import BEGIN, END, PAGE, page_text

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / PAGE).read_text("utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the script reads of the repository, to be changed."""
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / "setup.cfg")
    for name in contracts["importlinter"]["root_packages"].split():
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_page_is_fresh() -> None:
    assert page_text(TEXT, ROOT) == TEXT, "run scripts/draw_packages.py"


def test_another_docstring_makes_the_page_stale(root: Path) -> None:
    (root / "compiler" / "tune" / "__init__.py").write_text('"""Something else | entirely."""\n', "utf-8")
    changed = page_text(TEXT, root)
    assert changed != TEXT
    assert r"| `compiler/tune/` | Something else \| entirely. |" in changed


def test_another_contract_makes_the_page_stale(root: Path) -> None:
    text = (root / "setup.cfg").read_text("utf-8")
    (root / "setup.cfg").write_text(text.replace("compiler.passes | compiler.artifact", "compiler.passes"), "utf-8")
    with pytest.raises(ValueError, match=r"no row for compiler\.artifact"):
        page_text(TEXT, root)


def test_a_forbidden_import_is_no_arrow() -> None:
    assert "plan --> targets" not in TEXT
    assert "  plan --> compress\n" in TEXT
    assert "  targets --> target\n" in TEXT


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the picture"):
        page_text(TEXT.replace(BEGIN, "").replace(END, ""), ROOT)
