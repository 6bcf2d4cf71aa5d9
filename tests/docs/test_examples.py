"""The Python blocks of the pages are taken out as they stand, so that mypy's messages lead to the page's lines."""

from __future__ import annotations

from pathlib import Path

from check_examples import write_blocks

ROOT = Path(__file__).parents[2]


def test_a_block_keeps_its_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    page = "# Page\n\n```python\na = 1\nb: int = 'x'\n```\n\n```console\n$ ls\n```\n\n```python\nc = 2\n```\n"
    (tmp_path / "docs" / "a-page.md").write_text(page, "utf-8")
    first, second = write_blocks(tmp_path, tmp_path)
    assert first.read_text("utf-8").splitlines()[3:] == page.splitlines()[3:5]
    assert second.read_text("utf-8").splitlines()[12:] == ["c = 2"]


def test_every_python_block_of_the_documentation_is_taken_and_is_python(tmp_path: Path) -> None:
    files = list(write_blocks(ROOT, tmp_path))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(files) == sum(page.read_text("utf-8").count("```python") for page in pages)
    for file in files:
        compile(file.read_text("utf-8"), file.name, "exec")
