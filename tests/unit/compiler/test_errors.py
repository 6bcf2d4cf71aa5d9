from __future__ import annotations

import pytest

from compiler.errors import (
    CompilerError,
    DataError,
    FleetError,
    InternalError,
    Interrupted,
    ProfileError,
    all_errors,
    combine,
    from_dict,
)

_CODES = {
    "CompilerError": 1,
    "InternalError": 1,
    "UsageError": 2,
    "ProfileError": 2,
    "FleetError": 2,
    "DataError": 2,
    "ArtifactError": 2,
    "OutputError": 2,
    "ModelError": 3,
    "InvalidModel": 3,
    "UnsupportedModel": 3,
    "MissingError": 4,
    "TargetNotFound": 4,
    "TargetUnavailable": 4,
    "ToolchainFailed": 4,
    "StorageError": 4,
    "ServerError": 4,
    "GateFailed": 5,
    "SignatureRefused": 5,
    "FleetFailed": 6,
}


def test_every_class_has_the_exit_code_of_its_branch() -> None:
    assert {name: cls.exit_code for name, cls in all_errors().items() if cls.__module__ == "compiler.errors"} == _CODES


def test_message_tells_where_what_and_the_remedy() -> None:
    error = ProfileError("unknown key", where="board.yaml:7 cpu.coers", remedy="Did you mean 'cores'?")
    assert str(error) == "board.yaml:7 cpu.coers: unknown key\n  Did you mean 'cores'?"


def test_message_without_place_and_remedy_is_only_what() -> None:
    assert str(DataError("the array has a NaN")) == "the array has a NaN"


@pytest.mark.parametrize("name", sorted(_CODES))
def test_error_survives_the_border_between_processes(name: str) -> None:
    error = all_errors()[name]("what", where="where", remedy="remedy")
    back = from_dict(error.to_dict())
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_unknown_name_from_another_process_is_our_bug() -> None:
    back = from_dict({"error": "SystemExit", "what": "gone"})
    assert type(back) is InternalError
    assert back.what == "gone"


def test_one_error_is_combined_to_itself() -> None:
    error = FleetError("one")
    assert combine([error]) is error


def test_several_errors_become_one_of_the_first_class_that_says_all() -> None:
    combined = combine([FleetError("one", where="a.yaml:1"), DataError("two", remedy="Do.")])
    assert type(combined) is FleetError
    assert str(combined).splitlines() == ["2 problems:", "  - a.yaml:1: one", "  - two", "      Do."]


def test_interruption_is_not_caught_as_an_error() -> None:
    assert not issubclass(Interrupted, CompilerError)
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert Interrupted.exit_code == 130
