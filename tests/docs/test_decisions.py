"""Every decision record has a status and its row in the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "adr"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))
ROW = re.compile(
    r"^\| (?:\[(?P<linked>\d+)\]\((?P<file>[^)]+)\)|(?P<unused>\d+)) \| (?P<title>.*) \| (?P<status>.*?) ?\|$", re.M
)
ROWS = [row.groupdict() for row in ROW.finditer((FOLDER / "README.md").read_text("utf-8"))]
STATUS = re.compile(r"accepted|replaced by \[(\d+)\]\(([^)]+)\)")


def _head(page: Path) -> tuple[str, str, str]:
    """Number, title and status of a page."""
    match = re.match(r"# (\d+)\. ([^\n]+)\n\nStatus: ([^\n]+)\n", page.read_text("utf-8"))
    assert match is not None, f"{page.name} does not begin with number, title and status"
    return match[1], match[2], match[3].partition(": ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_its_row_in_the_index(page: Path) -> None:
    number, title, status = _head(page)
    assert page.name.startswith(f"{int(number):04}-")
    row = {"linked": number, "file": page.name, "unused": None, "title": title, "status": status}
    assert row in ROWS


def test_the_index_names_each_number_once_in_order() -> None:
    numbers = [int(row["linked"] or row["unused"]) for row in ROWS]
    assert numbers == list(range(1, len(ROWS) + 1))
    assert sum(row["linked"] is not None for row in ROWS) == len(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_status_is_accepted_or_names_the_page_that_replaces_it(page: Path) -> None:
    status = STATUS.fullmatch(_head(page)[2])
    assert status is not None
    assert status[2] is None or (FOLDER / status[2]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_context_choice_and_refused(page: Path) -> None:
    sections = re.findall(r"^## (.+)$", page.read_text("utf-8"), re.M)
    assert {"Context", "Choice", "Refused"} <= set(sections)
