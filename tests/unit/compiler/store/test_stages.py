"""One list of stages: the name of a file, of an entry in the store, of a step of the clock."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import compiler.driver
from compiler.errors import InternalError
from compiler.store import BORDER_STAGES, StageName, Store, read_result, stage_key, write_result

DRIVER = Path(next(iter(compiler.driver.__path__)))
NO_STAGES = {
    *("__init__", "any_batch", "border", "border_parity", "candidate", "context", "data", "emulation", "execute"),
    *("files", "inputs", "products", "proof", "run", "weights"),
}
"""Files of `driver/stages` that hold what several stages share, or another form of some."""


def test_every_stage_is_a_file_and_every_file_a_stage() -> None:
    files = {path.stem for folder in ("stages", "measure") for path in (DRIVER / folder).glob("*.py")}
    others = {path.stem for path in DRIVER.glob("*.py")}
    assert set(StageName) <= files | others
    assert {path.stem for path in (DRIVER / "stages").glob("*.py")} - set(StageName) == NO_STAGES
    assert set(BORDER_STAGES) <= set(StageName)


def fill(folder: Path) -> None:
    write_result(folder, "rows.json", [1, 2])


def test_a_key_has_the_parts_that_were_given_and_the_code_that_makes_the_result(tmp_path: Path) -> None:
    stage = stage_key(StageName.QUANTIZE, fill, {"model": "abc", "kept": {"b": 1, "a": 2}})
    parts = dict(stage.parts)
    assert list(parts) == ["model", "kept", "code", "packages"]
    assert (parts["model"], parts["kept"]) == ("abc", '{"a":2,"b":1}')
    assert len(parts["code"]) == 64 and "pytest" in parts["packages"]
    entry = Store(tmp_path).obtain(stage, fill)
    assert (entry.stage, read_result(entry, "rows.json")) == ("quantize", [1, 2])


def test_what_hides_the_code_that_computes_is_refused() -> None:
    with pytest.raises(InternalError, match="quantize"):
        stage_key(StageName.QUANTIZE, partial(fill), {})
