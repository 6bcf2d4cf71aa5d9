"""The manifests are what Kubernetes takes, and start commands that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from compiler.cli import cli

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe").load_all(path.read_text("utf-8")))


def test_every_file_is_in_the_kustomization() -> None:
    (listed,) = documents(FOLDER / "kustomization.yaml")
    assert sorted(listed["resources"]) == [path.name for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_manifest_holds_the_schema(path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in documents(path):
        validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_options_of_fleetc_are_those_that_there_are(path: Path) -> None:
    for document in documents(path):
        containers = document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        for container in containers:
            program, *words = container.get("args", [""])
            if program == "fleetc":
                command = cli.get_command(None, words[0])  # type: ignore[arg-type]  # no context is needed
                known = {name for option in command.params for name in option.opts}
                assert {word for word in words if word.startswith("--")} <= known
