"""The names that a plugin may import."""

from __future__ import annotations

import pytest

import compiler.target as contract


def test_the_names_of_the_contract_are_listed_once_and_sorted_alike() -> None:
    assert list(contract._PLACES) == contract.__all__ and len(set(contract.__all__)) == len(contract.__all__)


@pytest.mark.parametrize("name", contract.__all__)
def test_every_name_of_the_contract_can_be_imported(name: str) -> None:
    assert getattr(contract, name) is not None
