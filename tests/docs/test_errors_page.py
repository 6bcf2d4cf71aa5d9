"""docs/errors.md has one entry for every class of the exception tree, with its exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compiler.errors import CompilerError, Interrupted, all_errors

TEXT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
CLASSES = {name: cls for name, cls in all_errors().items() if cls.__module__ == CompilerError.__module__}
CODES = {name: cls.exit_code for name, cls in CLASSES.items()} | {"Interrupted": Interrupted.exit_code}


def test_there_is_one_entry_per_class_and_no_other() -> None:
    assert sorted(ENTRIES) == sorted(CODES)


@pytest.mark.parametrize("name", sorted(set(CODES) - {"CompilerError"}))
def test_an_entry_states_the_class_s_exit_code_first(name: str) -> None:
    assert ENTRIES[name].strip().startswith(f"Exit code {CODES[name]}. ")


@pytest.mark.parametrize("name", sorted(set(CODES) - {"CompilerError", "ModelError", "MissingError"}))
def test_an_entry_of_a_class_that_is_raised_shows_a_message(name: str) -> None:
    assert "```text\n" in ENTRIES[name]


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_message_names_the_heading_of_its_class(name: str) -> None:
    page, anchor = CLASSES[name]("what").page.split("#")
    assert (Path(__file__).parents[2] / page).is_file()
    assert anchor in {heading.lower() for heading in ENTRIES}
