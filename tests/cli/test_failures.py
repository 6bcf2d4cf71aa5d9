"""One device fails, the others are delivered; whatever fails says what, where and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compiler.target.testing import install_plugin
from tests.cli.conftest import Place, make_place, run_here, write_model


@pytest.mark.parametrize(
    ("mood", "args", "code", "words"),
    [
        ({"build": "crash"}, (), 4, ("crashed with signal SIGSEGV", "bad: build")),
        ({"build": "hang"}, ("--build-timeout", "6"), 4, ("did not finish within 6 s", "--build-timeout")),
        ({"build": "eat-memory"}, ("--build-memory", "700"), 4, ("more than its limit of 700 MiB", "--build-memory")),
        ({"build": "fail"}, (), 4, ("the fake toolchain failed",)),
        ({"build": "raise"}, (), 1, ("RuntimeError", "has a bug")),
        ({"run": "crash"}, (), 4, ("crashed with signal SIGSEGV", "bad: verify")),
        ({"refuses": ["Conv", "Sigmoid"]}, (), 3, ("conv_a", "conv_c", "sigmoid_f")),
    ],
    ids=lambda value: "-".join(f"{k}-{v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
def test_failing_device_is_named_and_the_other_is_delivered(
    place: Place, mood: Mapping[str, object], args: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    place.moody({"bad": mood, "one": {}})
    outcome = place.build("--json", *args)
    assert outcome.code == 6, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not (place.dist / "bad").exists()
    assert (place.dist / "one" / "manifest.json").exists()
    summary = json.loads((place.dist / "build.json").read_text())["devices"]
    assert summary["bad"]["status"] == "failed"
    assert summary["bad"]["error"]["exit_code"] == code
    assert summary["one"]["status"] == "delivered"
    rows = {row["device"]: row for row in outcome.json["devices"]}
    assert rows["bad"]["error"]["exit_code"] == code
    assert {path.name for path in place.dist.iterdir()} == {"one", "build.json", "report.html"}


def test_wrong_numbers_are_code_5_and_the_first_diverging_operator_is_found_behind_a_branch(place: Place) -> None:
    place.moody({"bad": {"wrong_at": "Sigmoid"}})
    outcome = place.build()
    assert outcome.code == 5, outcome.err
    assert "The first operator that diverges is Sigmoid 'sigmoid_f'" in outcome.err
    assert not (place.dist / "bad").exists()


def test_all_devices_failing_alike_gives_that_code(place: Place) -> None:
    place.moody({"bad": {"build": "fail"}, "worse": {"build": "crash"}})
    outcome = place.build()
    assert outcome.code == 4
    assert "bad" in outcome.err
    assert "worse" in outcome.err


def test_failure_is_not_kept_as_a_result(place: Place) -> None:
    place.moody({"one": {"build": "fail"}})
    assert place.build().code == 4
    place.moody({"one": {}})
    assert place.build().code == 0


def test_failed_device_leaves_no_artifact_of_an_earlier_build(delivered: Place) -> None:
    delivered.profile("one", build="fail")
    assert delivered.build().code == 6
    assert not (delivered.dist / "one").exists()


def test_build_that_cannot_start_leaves_the_earlier_delivery_as_it_was(delivered: Place) -> None:
    before = delivered.digests()
    (delivered.root / "model.onnx").write_bytes(b"")
    assert delivered.build().code == 3
    assert delivered.digests() == before


def truncated(place: Place) -> None:
    path = place.root / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])


def empty(place: Place) -> None:
    (place.root / "model.onnx").write_bytes(b"")


def unknown_operator(place: Place) -> None:
    write_model(place.root / "model.onnx", "(float[batch, 4] x) => (float[batch, 4] y) { y = Frobnicate(x) }", w=(1,))


def folder(place: Place) -> None:
    (place.root / "model.onnx").unlink()
    (place.root / "model.onnx").mkdir()


def unknown_key(place: Place) -> None:
    (place.root / "one.yaml").write_text("schema: 1\nname: one\ntarget: moody\ncolour: red\n")


def missing_target(place: Place) -> None:
    (place.root / "one.yaml").write_text("schema: 1\nname: one\ntarget: mody\n")


def nan_samples(place: Place) -> None:
    np.savez(place.root / "s.npz", x=np.full((2, 3, 8, 8), np.nan, np.float32))
    place.write_fleet({"one": "./one.yaml", "two": "./two.yaml"}, calibration={"path": "s.npz"})


def shaped_samples(place: Place) -> None:
    np.savez(place.root / "s.npz", x=np.zeros((2, 3, 9, 9), np.float32))
    place.write_fleet({"one": "./one.yaml", "two": "./two.yaml"}, calibration={"path": "s.npz"})


def limit_without_data(place: Place) -> None:
    place.write_fleet({"one": {"profile": "./one.yaml", "limits": {"accuracy_drop_pct": 3}}})


def dims(place: Place) -> None:
    place.write_fleet({"one": {"profile": "./one.yaml", "dims": {"width": 3}}})


@pytest.mark.parametrize(
    ("spoil", "code", "word"),
    [
        (empty, 3, "model.onnx"),
        (truncated, 3, "model.onnx"),
        (unknown_operator, 3, "Frobnicate"),
        (folder, 2, "model.onnx"),
        (unknown_key, 2, "colour"),
        (missing_target, 4, "moody"),
        (nan_samples, 2, "NaN"),
        (shaped_samples, 2, "9"),
        (limit_without_data, 2, "accuracy_drop_pct"),
        (dims, 2, "width"),
    ],
)
def test_bad_file_gives_its_code_in_words_and_in_json(place: Place, spoil: object, code: int, word: str) -> None:
    place.write_fleet({"one": place.profile("one")})
    place.profile("two")
    spoil(place)  # type: ignore[operator]
    outcome = place.build("--json")
    assert outcome.code == code, outcome.err
    assert outcome.json["exit_code"] == code
    assert word in outcome.err
    assert "fleetc-bug" not in outcome.err
    assert outcome.err.count("NaN") <= 1
    assert not (place.dist / "one").exists()


def test_plugin_that_raises_on_import_fails_its_device_only(place: Place, tmp_path: Path) -> None:
    install_plugin(tmp_path, "sickly", "raise OSError('libnpu.so is not there')")
    place.write_fleet({"one": place.profile("one"), "sick": place.profile("sick", "sickly")})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        outcome = place.build()
    assert outcome.code == 6, outcome.err
    assert "libnpu.so is not there" in outcome.err
    assert (place.dist / "one").is_dir()


def test_two_plugins_of_one_name_fail_their_devices_only(place: Place, tmp_path: Path) -> None:
    for name in ("twin_a", "twin_b"):
        install_plugin(tmp_path, name, "from compiler.target.testing import FakeTarget\nTARGET = FakeTarget('twin')\n")
        points = f"[fleetc.targets]\ntwin = fleetc_{name}:TARGET\n"
        (tmp_path / f"fleetc_{name}-1.0.dist-info" / "entry_points.txt").write_text(points)
    place.write_fleet({"one": place.profile("one"), "both": place.profile("both", "twin")})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        outcome = place.build()
        listed = place.run("targets")
    assert outcome.code == 6, outcome.err
    assert "fleetc-twin_a 1.0 and fleetc-twin_b 1.0" in outcome.err
    assert (place.dist / "one").is_dir()
    assert "twin" in listed.out + listed.err


@pytest.mark.parametrize("option", ["--cache", "-o"])
def test_file_where_a_folder_is_wanted_is_an_error_with_a_remedy(place: Place, option: str) -> None:
    place.moody({"one": {}})
    for path, code in ((place.fleet, 2), (place.fleet / "below", 4 if option == "--cache" else 2)):
        outcome = place.build(option, path)
        assert outcome.code == code, outcome.err
        assert str(path) in outcome.err


LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); \
from compiler.cli import main; main()"


@pytest.mark.parametrize("cached", [True, False], ids=["output", "cache"])
def test_full_disk_is_code_4_and_leaves_nothing_half_written(place: Place, cached: bool) -> None:
    import signal
    import subprocess
    import sys

    place.moody({"one": {}})
    if cached:
        assert place.build("-o", place.root / "first").code == 0
    bytes_free = "2500" if cached else "300"
    process = subprocess.run(
        [sys.executable, "-P", "-c", LIMITED, bytes_free, *map(str, place.build_command())],
        cwd=place.root,
        env={**place.env, "FLEETC_CACHE": str(place.cache if cached else place.root / "tiny")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    assert process.returncode == 4, process.stderr
    assert "the disk is full" in process.stderr
    assert "Traceback" not in process.stderr
    assert not [path for path in place.dist.rglob("*") if path.name != "build.json"]


def test_help_names_every_exit_code(place: Place) -> None:
    outcome = place.run("--help")
    assert outcome.code == 0
    assert all(f" {code} " in outcome.out for code in (0, 1, 2, 3, 4, 5, 6, 130))


def test_cache_folder_is_taken_from_the_environment(shared: Place) -> None:
    assert json.loads(shared.run("cache", "info", "--json").out)["root"] == os.fspath(shared.cache)


MEASURED_PLUGIN = """
import os
from compiler.errors import StorageError, TargetUnavailable
from compiler.target.testing.fake import FakeTarget

RAISED = {
    "missing": TargetUnavailable("no counter on this machine"),
    "bug": RuntimeError("the counter has a bug"),
    "disk": StorageError("the disk is full"),
}

def measured(what):
    measurement, _, fault = os.environ["FAULT"].partition(" ")
    if measurement == what:
        raise RAISED[fault]

class Runner:
    def __init__(self, inner):
        self._inner, self.evidence = inner, inner.evidence
    def run(self, inputs):
        return self._inner.run(inputs)
    def close(self):
        self._inner.close()
    def peak_memory_bytes(self, inputs):
        measured("memory")
        return 100 << 20
    def layer_times(self, inputs):
        measured("layers")
        return []

class Measured(FakeTarget):
    def load(self, artifact):
        return Runner(super().load(artifact))

TARGET = Measured("measured")
"""


@pytest.fixture(scope="module", params=["memory", "layers"])
def counted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, site: Path, shared: Place
) -> tuple[str, Place]:
    """What fails to be measured, and a place for it: a failure is not stored, so that what is built once serves all."""
    if not (site / "fleetc_measured.py").exists():
        install_plugin(site, "measured", MEASURED_PLUGIN)
    place = make_place(tmp_path_factory.mktemp("counted"), site, repeat=1)
    shutil.copytree(shared.cache, place.cache)
    place.write_fleet({"one": place.profile("counted", "measured")}, limits={"memory_reduction_pct": 0})
    return request.param, place


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [("missing", 0, ""), ("bug", 1, "RuntimeError: the counter has a bug"), ("disk", 4, "the disk is full")],
)
def test_a_measurement_fails_softly_only_for_what_the_machine_lacks(
    counted: tuple[str, Place], fault: str, code: int, words: str
) -> None:
    measurement, place = counted
    variables = {**place.variables, "FAULT": f"{measurement} {fault}"}
    outcome = run_here(place.build_command("--precision", "fp32"), folder=place.root, variables=variables)
    assert outcome.code == code, outcome.err
    assert words in outcome.err
    if code == 0 and measurement == "memory":
        gates = {gate["name"]: gate for gate in place.manifest("one")["gates"]}
        assert gates["memory: run"]["passed"] is None
        assert "no counter on this machine" in gates["memory: run"]["why"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"precision": "fp8"}, "precision fp8 cannot be had"),
        ({"batch": 3, "dims": {"nowhere": 4}}, "nowhere"),
    ],
)
def test_setting_of_one_device_that_cannot_be_had_does_not_stop_the_others(
    place: Place, setting: Mapping[str, object], words: str
) -> None:
    place.write_fleet({"bad": {"profile": place.profile("bad"), **setting}, "one": place.profile("one")})
    outcome = place.build("--json")
    assert outcome.code == 6, outcome.err
    rows = {row["device"]: row for row in outcome.json["devices"]}
    assert rows["bad"]["error"]["exit_code"] == 2
    assert words in json.dumps(rows["bad"]["error"])
    assert rows["one"]["status"] == "delivered"
    assert not (place.dist / "bad").exists()


def test_unknown_key_of_one_device_stops_all(place: Place) -> None:
    place.write_fleet({"bad": {"profile": place.profile("bad"), "colour": "red"}, "one": place.profile("one")})
    outcome = place.build()
    assert outcome.code == 2 and "colour" in outcome.err
    assert not place.dist.exists()
