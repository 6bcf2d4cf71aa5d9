"""A build that keeps a ladder: the rungs are whole artifacts, described in the manifest, and read back for serving."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compiler import read_artifact
from compiler.target import CompilerError
from compiler.target.testing import install_plugin
from serving.builds import read_builds
from serving.drift import DriftMonitor, least_shift
from tests.cli.conftest import Place, make_place

PACED = '''
import time
from compiler.target.testing.fake import FakeTarget

class Runner:
    """What float32 takes four times as long as the others."""
    def __init__(self, inner, item_s):
        self._inner, self._item_s, self.evidence = inner, item_s, inner.evidence
    def run(self, inputs):
        time.sleep(self._item_s * len(inputs["x"]))
        return self._inner.run(inputs)
    def close(self):
        self._inner.close()

class Paced(FakeTarget):
    def load(self, artifact):
        return Runner(super().load(artifact), 0.008 if artifact.precision == "fp32" else 0.002)

TARGET = Paced("paced")
'''

COUNTED = '''
from compiler.target import Evidence
from compiler.target.testing.fake import FakeTarget

class Runner:
    """Says what an emulator would: no times, and fewer instructions where weights have fewer bits."""
    evidence = Evidence.EMULATOR
    def __init__(self, inner, count):
        self._inner, self._count = inner, count
    def run(self, inputs):
        return self._inner.run(inputs)
    def count_instructions(self, inputs):
        return self._count
    def close(self):
        self._inner.close()

class Counted(FakeTarget):
    def load(self, artifact):
        return Runner(super().load(artifact), 4000 if artifact.precision == "fp32" else 1000)

TARGET = Counted("counted")
'''


@pytest.fixture(scope="module")
def laddered(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Place:
    install_plugin(site, "paced", PACED)
    place = make_place(tmp_path_factory.mktemp("ladder"), site, repeat=1)
    draw = np.random.default_rng(0)
    np.savez(place.root / "calibration.npz", x=draw.normal(size=(256, 3, 8, 8)).astype(np.float32))
    device = {"profile": place.profile("one", "paced"), "batch": {"min": 1, "opt": 2, "max": 4}}
    place.write_fleet(
        {"one": device},
        calibration={"path": "calibration.npz"},
        limits={"accuracy_drop_pct": 50},
        serve={"slo_ms": 20, "ladder": "auto"},
    )
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    return place


def test_every_rung_is_a_whole_artifact_inside_the_gates(laddered: Place) -> None:
    delivered = read_artifact(laddered.dist / "one")
    ladder = delivered.manifest.ladder
    assert ladder is not None
    assert ladder.slo_ms == 20
    assert ladder.rungs[0].name in ("fp32", "fp16")
    assert len(ladder.rungs) > 1
    passed = {trial.number for trial in delivered.manifest.trials if trial.status == "passed"}
    assert delivered.manifest.decision.trial in [rung.trial for rung in ladder.rungs]
    assert len(ladder.rungs) + len(ladder.left_out) == len(passed)
    for rung in ladder.rungs:
        assert rung.trial in passed
        assert [time.items for time in rung.service] == [1, 2, 4]
        own = read_artifact(laddered.dist / "one" / rung.folder).manifest
        assert own.decision.trial == rung.trial
        assert all(gate.passed is not False for gate in own.gates)
    ratios = [rung.accuracy_ratio for rung in ladder.rungs]
    assert ratios == sorted(ratios, reverse=True)


def test_serving_reads_the_ladder_and_refuses_another_manifest(laddered: Place) -> None:
    folder = laddered.dist / "one"
    ladder = read_artifact(folder).manifest.ladder
    assert ladder is not None
    served = read_builds([folder])
    assert served.slo_s == 0.02
    assert [build.name for build in served.builds] == [rung.name for rung in ladder.rungs]
    assert served.builds[0].rung.service_s == {time.items: time.p95_ms / 1e3 for time in ladder.rungs[0].service}
    for rung in ladder.rungs:
        if rung.folder:
            path = folder / rung.folder / "manifest.json"
            before = path.read_text()
            path.write_text(before.replace('"fleetc": "', '"fleetc": "9', 1))
            with pytest.raises(CompilerError, match="not the one that the ladder was delivered with"):
                read_builds([folder])
            path.write_text(before)


def test_the_drift_figures_tell_shifted_inputs_from_clean_ones(laddered: Place) -> None:
    manifest = json.loads((laddered.dist / "one" / "manifest.json").read_text())
    assert manifest["drift"]["samples"] == 128  # the other half judges
    assert set(manifest["drift"]["outputs"]["y"]["histograms"]) == {"norm", "top", "margin"}
    baseline = read_artifact(laddered.dist / "one").manifest.drift
    draw = np.random.default_rng(1)

    def worst(change: float, noise: float) -> float:
        monitor = DriftMonitor(baseline)
        for _ in range(500):
            x = draw.normal(size=(1, 3, 8, 8)).astype(np.float32) + np.float32(change)
            monitor.see({"x": x + noise * draw.normal(size=x.shape).astype(np.float32)}, {}, 1)
        return max(index for indices in monitor.shifts().values() for index in indices.values())

    limit = least_shift(baseline.samples)
    assert worst(0.0, 0.0) < limit
    assert worst(0.2, 0.0) > limit
    assert worst(0.0, 0.5) > limit


@pytest.mark.slow
def test_builds_that_nobody_timed_are_ranked_by_what_their_emulator_counted(site: Path, tmp_path: Path) -> None:
    install_plugin(site, "counted", COUNTED)
    place = make_place(tmp_path, site, repeat=1)
    draw = np.random.default_rng(0)
    np.savez(place.root / "calibration.npz", x=draw.normal(size=(32, 3, 8, 8)).astype(np.float32))
    place.write_fleet(
        {"board": {"profile": place.profile("board", "counted"), "batch": 1}},
        calibration={"path": "calibration.npz"},
        limits={"accuracy_drop_pct": 50},
        serve={"slo_ms": 20, "ladder": "auto"},
    )
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    ladder = read_artifact(place.dist / "board").manifest.ladder
    assert ladder is not None
    assert [rung.service for rung in ladder.rungs] == [(), ()]
    first, second = ladder.rungs
    assert first.name in ("fp32", "fp16")
    assert second.name != first.name
    assert all(read_artifact(place.dist / "board" / rung.folder) for rung in ladder.rungs)
