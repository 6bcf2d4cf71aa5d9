"""What is called proven, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compiler.artifact.report import read_build
from compiler.artifact.report.words import Proof, proofs
from tests.unit.compiler.artifact.report.conftest import gate, manifest, trial, write_dist


def proof_of_accuracy(tmp_path: Path, accuracy: dict[str, Any], *, high_pct: float = 1.5, **judged: Any) -> Proof:
    chosen = trial(2, "int8")
    chosen["accuracy"]["drop"]["high_pct"] = high_pct
    chosen["accuracy"] |= accuracy
    facts = manifest("one", trials=[trial(1, "fp32"), chosen], gates=[gate(**judged)])
    (device,) = read_build(write_dist(tmp_path, {"one": facts})).devices
    return proofs(device)[-1]


def test_a_drop_whose_interval_stays_inside_the_limit_is_proven(tmp_path: Path) -> None:
    found = proof_of_accuracy(tmp_path, {}, high_pct=1.9)
    assert (found.state, found.text) == ("proven", "Accuracy passed: 1 point lost, limit at most 2 (point).")


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        ({}, "The 95 % interval (-0.5 to 2.1) reaches beyond the limit"),
        ({"measured_on": "border model", "note": "no GPU"}, "the border model's accuracy, not the artifact's: no GPU."),
    ],
)
def test_a_drop_that_passed_and_proves_less_is_open(tmp_path: Path, accuracy: dict[str, Any], words: str) -> None:
    found = proof_of_accuracy(tmp_path, accuracy, high_pct=2.1)
    assert found.state == "open" and words in found.text


def test_estimates_and_what_nobody_judged_are_open_and_a_failed_gate_is_refuted(tmp_path: Path) -> None:
    assert proof_of_accuracy(tmp_path / "a", {}, evidence="estimated").state == "open"
    assert proof_of_accuracy(tmp_path / "b", {}, passed=None, value=None, why="no data").state == "open"
    assert proof_of_accuracy(tmp_path / "c", {}, passed=False).state == "refuted"
