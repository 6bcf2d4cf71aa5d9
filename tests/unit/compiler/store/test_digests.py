"""A stage's key has the code that can change its result, found by following imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from compiler.errors import InternalError
from compiler.store import digests
from compiler.store.digests import closure_digest, closure_packages, find_closure

PLUGIN = {
    "__init__": "from .kernels import choose",
    "kernels": "def choose():\n    from .table import ROWS\n    return ROWS",
    "table": "ROWS = 1",
    "docs": "TEXT = 1",
    "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from plugin.docs import TEXT\n",
    "child": 'COMMAND = ("-m", "plugin.table")',
    "beside": 'SCRIPT = "table.py"',
    "any": 'import importlib\ndef load(name):\n    return importlib.import_module(f"plugin.parts.{name}")',
    "parts/__init__": "",
    "parts/one": "import numpy",
    "lazy/__init__": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from plugin.table import ROWS
    from plugin.docs import TEXT
PLACES = {"ROWS": "plugin.table", "TEXT": "plugin.docs"}
def __getattr__(name):
    return name
""",
    "user": "from plugin.lazy import ROWS",
    "relative": "from . import table",
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package on the import path; what was read of it is forgotten by `fresh`."""
    folder = tmp_path / "plugin"
    write(folder, PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    fresh()
    yield folder
    fresh()


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def fresh() -> None:
    for known in (closure_digest, closure_packages, find_closure, digests._module_file, digests._imports_of):
        known.cache_clear()


@pytest.mark.parametrize(
    "root",
    ["kernels", "child", "beside", "user", "relative"],
    ids=["lazy import", "string", "file", "lazy", "relative"],
)
def test_a_change_that_the_code_can_reach_changes_the_key_and_another_does_not(plugin: Path, root: str) -> None:
    before = closure_digest(f"plugin.{root}")
    (plugin / "docs.py").write_text("TEXT = 2\n")
    fresh()
    assert closure_digest(f"plugin.{root}") == before
    (plugin / "table.py").write_text("ROWS = 2\n")
    fresh()
    assert closure_digest(f"plugin.{root}") != before


def test_what_only_a_type_checker_imports_is_in_no_key(plugin: Path) -> None:
    assert [name for name, _ in find_closure("plugin.typed").files] == ["plugin", "plugin.typed"]


def test_a_name_made_at_run_time_stands_for_every_module_of_its_package(plugin: Path) -> None:
    assert "plugin.parts.one" in dict(find_closure("plugin.any").files)
    assert set(closure_packages("plugin.any")) == {"numpy"}


def test_a_package_stands_for_all_its_modules_and_its_other_sources(plugin: Path) -> None:
    (plugin / "native").mkdir()
    (plugin / "native" / "loop.c").write_text("int loop;")
    names = dict(find_closure("plugin").files)
    assert {"plugin.docs", "plugin.table", "plugin.parts.one", "plugin.native.loop.c"} <= set(names)


@pytest.mark.parametrize("module", ["compiler.no_such_module", "no_such_package.module", "sys", "plugin.nothing"])
def test_a_key_never_goes_on_without_the_code_it_names(plugin: Path, module: str) -> None:
    with pytest.raises(InternalError, match=module):
        closure_digest(module)


def test_a_plugin_may_do_without_a_module_and_bring_files_that_are_no_python(plugin: Path) -> None:
    (plugin / "optional.py").write_text(
        "try:\n    from plugin._version import version\nexcept ImportError:\n    pass\n"
    )
    (plugin / "template.py").write_text("{{ not python }}")
    assert len(closure_digest("plugin")) == 64


@pytest.mark.parametrize(
    ("root", "reached"),
    [
        ("compiler.driver.stages.reference", "compiler.model.reference"),
        ("compiler.driver.stages.reference", "compiler.model.graph"),
        ("compiler.driver.stages.outputs", "compiler.model.reference"),
        ("compiler.driver.stages.rewrite", "compiler.passes.fuse_conv_bn"),
        ("compiler.driver.stages.rewrite", "compiler.passes.onnxsim_child"),
        ("compiler.driver.stages.compile", "compiler.target.worker"),
        ("compiler.driver.measure.child", "compiler.target.worker_measure"),
        ("compiler.driver.stages.recover", "compiler.compress.recover.train"),
        ("compiler.driver.stages.quantize", "compiler.compress.quant.quantize"),
        ("targets.arm_tvm", "compiler.model.numerics"),
    ],
)
def test_the_stages_reach_what_computes_their_results(root: str, reached: str) -> None:
    assert reached in dict(find_closure(root).files)


def test_a_stage_is_not_made_anew_for_what_cannot_touch_it() -> None:
    names = {name for name, _ in find_closure("compiler.driver.stages.reference").files}
    assert not any(name.startswith(("compiler.cli", "compiler.compress", "compiler.artifact.report")) for name in names)


def test_packages_are_named_by_their_imports_with_the_version_of_what_is_installed() -> None:
    packages = closure_packages("compiler.driver.stages.recover")
    assert {"onnx", "onnx_ir", "onnxruntime", "numpy", "torch"} <= set(packages)
    assert packages["numpy"].count(".") >= 2
