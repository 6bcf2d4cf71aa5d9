"""What is done with a delivered folder, and what is said of one that is not as it was delivered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Place

Damage = Callable[[Path], None]


def edited(change: Callable[[Any], object]) -> Damage:
    """Changes the manifest."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / "manifest.json").read_text())
        change(value)
        (folder / "manifest.json").write_text(json.dumps(value))

    return damage


def flip(folder: Path) -> None:
    path = folder / "payload" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def linked(folder: Path) -> None:
    (folder / "payload").rename(folder.parent / "elsewhere")
    (folder / "payload").symlink_to(folder.parent / "elsewhere")


def claim_other_bytes(folder: Path) -> None:
    """The measurements must not vouch for a file of the manifest."""
    flip(folder)
    path = folder / "measurements.json"
    value = json.loads(path.read_text())
    from compiler.store import file_digest

    name = "payload/model.onnx"
    value["non_reproducible_files"] = {name: {"sha256": file_digest(folder / name), "bytes": 1}}
    path.write_text(json.dumps(value))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "flipped bit": (flip, "payload/model.onnx: not the bytes"),
    "missing file": (lambda folder: (folder / "payload" / "model.onnx").unlink(), "payload/model.onnx: missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"schema": 1, "dev'), "no JSON"),
    "binary manifest": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), "no JSON"),
    "deep manifest": (lambda folder: (folder / "manifest.json").write_text("[" * 100000), "no JSON"),
    "list for manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "no mapping"),
    "newer schema": (edited(lambda value: value.update(schema=9)), "has schema 9"),
    "foreign": (edited(lambda value: value.clear()), "schema None"),
    "no plan": (edited(lambda value: value.pop("plan")), "plan"),
    "no verdict": (edited(lambda value: value.pop("verdict")), "verdict"),
    "dims of text": (edited(lambda value: value["plan"].update(dims={"batch": "many"})), "plan.dims.batch"),
    "path out": (
        edited(lambda value: value["artifact"].update(files=["../../in.npz"])),
        "not listed",
    ),
    "listed path out": (
        edited(lambda value: value["files"].update({"../../in.npz": {"sha256": "0" * 64, "bytes": 1}})),
        "../../in.npz: outside",
    ),
    "absolute path": (
        edited(lambda value: value["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
        "/etc/passwd: outside",
    ),
    "link": (linked, "outside the artifact's folder"),
    "vouching measurements": (claim_other_bytes, "payload/model.onnx: not the bytes"),
    "newer measurements": (
        lambda folder: (folder / "measurements.json").write_text('{"schema": 9}'),
        "measurements.json has schema 9",
    ),
    "half measurements": (lambda folder: (folder / "measurements.json").write_text("{"), "measurements.json"),
    "foreign measurements": (lambda folder: (folder / "measurements.json").write_text("{}"), "measurements.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_folder_that_is_not_as_delivered_is_refused(delivered: Place, damage: str) -> None:
    spoil, words = DAMAGES[damage]
    folder = delivered.dist / "one"
    spoil(folder)
    for command in (("inspect", folder), ("verify", folder), ("bench", folder), ("finish", folder)):
        outcome = delivered.run(*command, "--json")
        assert outcome.code == 2, (command, outcome)
        assert words in outcome.json["what"] + outcome.json["where"], outcome.json
        assert outcome.json["remedy"] or "problems" in outcome.json["what"]


def test_every_damaged_file_is_named_at_once(delivered: Place) -> None:
    folder = delivered.dist / "one"
    flip(folder)
    (folder / "border.onnx").unlink()
    outcome = delivered.run("verify", folder)
    assert "payload/model.onnx" in outcome.err
    assert "border.onnx" in outcome.err


def test_deferred_artifact_is_refused_until_it_is_finished(place: Place) -> None:
    device = place.root / "device-is-here"
    place.moody({"late": {"wait_for": str(device)}})
    outcome = place.build("--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["devices"][0]["status"] == "deferred"
    folder = place.dist / "late"
    np.savez(place.root / "in.npz", x=np.ones((1, 3, 8, 8), np.float32))
    for command in (("run", folder, "in.npz", "out.npz"), ("verify", folder), ("bench", folder)):
        refused = place.run(*command)
        assert refused.code == 2
        assert "fleetc finish" in refused.err
    before = place.digests()
    assert place.run("finish", folder).code == 2
    assert place.digests() == before
    device.touch()
    finished = place.run("finish", folder, "--json")
    assert finished.code == 0, finished.err
    assert finished.json["status"] == "passed"
    assert json.loads((place.dist / "build.json").read_text())["devices"]["late"]["status"] == "finished"
    assert place.run("report", place.dist).code == 0
    assert place.run("verify", folder).code == 0
    again = place.run("finish", folder)
    assert again.code == 2
    assert "complete already" in again.err


def test_finish_builds_with_all_that_was_planned(place: Place) -> None:
    device = place.root / "device-is-here"
    profile = place.profile("late", wait_for=str(device))
    # fp16 halves the weights, which the memory limit asks for: the limit then bounds the payload, too
    place.write_fleet({"late": profile}, limits={"memory_reduction_pct": 40})
    assert place.build().code == 0
    planned = place.manifest("late")["artifact"]["facts"]["payload_bytes"]
    assert planned > 0
    device.touch()
    finished = place.run("finish", place.dist / "late")
    assert finished.code == 0, finished.err
    assert place.manifest("late")["artifact"]["facts"]["payload_bytes"] == planned


def test_run_writes_what_the_border_model_gives(shared: Place, tmp_path: Path) -> None:
    outcome = shared.run("run", shared.dist / "one", "in.npz", tmp_path / "out.npz", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["outputs"][0]["name"] == "y"
    assert np.load(tmp_path / "out.npz")["y"].shape == (1, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    np.save(tmp_path / "in.npy", np.ones((1, 3, 8, 8), np.float32))
    outcome = shared.run("run", shared.dist / "one", tmp_path / "in.npy", tmp_path / "out.npy")
    assert outcome.code == 0, outcome.err
    assert np.allclose(np.load(tmp_path / "out.npy"), np.load(tmp_path / "out.npz")["y"])


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.npz", None, "none.npz"),
        ("empty.npz", b"", "empty.npz"),
        ("cut.npz", b"PK\x03\x04 and then nothing", "cut.npz"),
        ("text.npy", b"not an array", "text.npy"),
        ("huge.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9" + b"9" * 9, "huge"),
    ],
)
def test_inputs_that_cannot_be_read_are_code_2(
    shared: Place, tmp_path: Path, name: str, content: bytes | None, word: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outcome = shared.run("run", shared.dist / "one", tmp_path / name, tmp_path / "out.npz")
    assert outcome.code == 2, outcome.err
    assert word in outcome.err
    assert not (tmp_path / "out.npz").exists()


def test_inputs_that_do_not_fit_name_every_problem(shared: Place, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((1, 3, 9, 8), np.float64), z=np.ones(3))
    outcome = shared.run("run", shared.dist / "one", tmp_path / "in.npz", tmp_path / "out.npz")
    assert outcome.code == 2
    assert "'z'" in outcome.err
    assert "float64[1, 3, 9, 8]" in outcome.err.replace("(", "[").replace(")", "]")


@pytest.mark.parametrize("name", ["out.txt", "no/such/folder/out.npz", "."])
def test_place_outputs_cannot_be_written_to_is_code_2(shared: Place, tmp_path: Path, name: str) -> None:
    outcome = shared.run("run", shared.dist / "one", "in.npz", tmp_path / name)
    assert outcome.code == 2, outcome.err
    assert str(tmp_path) in outcome.err


def test_verify_compares_with_the_border_model_or_the_original(shared: Place) -> None:
    for more in ((), ("--model", shared.root / "model.onnx")):
        outcome = shared.run("verify", shared.dist / "two", *more, "--json")
        assert outcome.code == 0, outcome.err
        assert [point["sizes"] for point in outcome.json["points"]] == ["batch=1", "batch=2", "batch=4"]


def test_verify_with_another_model_is_code_2(shared: Place, tmp_path: Path) -> None:
    from tests.cli.conftest import write_model

    other = write_model(tmp_path / "m.onnx", "(float[batch, 4] q) => (float[batch, 4] p) { p = Relu(q) }", w=(1,))
    outcome = shared.run("verify", shared.dist / "one", "--model", other)
    assert outcome.code == 2, outcome.err
    assert "m.onnx" in outcome.err


def test_bench_labels_its_figures(shared: Place) -> None:
    outcome = shared.run("bench", shared.dist / "two", "--size", "batch=3", "--repeat", "3", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["evidence"] == "measured-host"
    assert outcome.json["latency"]["runs"] == 3
    assert outcome.json["latency"]["sizes"] == "batch=3"
    text = shared.run("bench", shared.dist / "two", "--repeat", "3")
    assert "measured-host" in text.out


@pytest.mark.parametrize("size", ["batch", "batch=0", "width=3", "=3"])
def test_bench_refuses_a_size_that_is_none(shared: Place, size: str) -> None:
    outcome = shared.run("bench", shared.dist / "two", "--size", size)
    assert outcome.code == 2
    assert "--size" in outcome.err or "width" in outcome.err


def test_inspect_traces_a_source_node_into_the_fused_one(place: Place) -> None:
    place.moody({"one": {}})
    assert place.build("--skip-pass", "simplify-onnxsim").code == 0
    outcome = place.run("inspect", place.dist / "one", "--node", "mul_m", "--json")
    assert outcome.code == 0, outcome.err
    (operator,) = outcome.json["operators"]
    assert operator["op"] == "Conv" and "mul_m" in operator["origin"] and operator["precision"] == "fp32"
    text = place.run("inspect", place.dist / "one", "--node", "mul_m").out
    assert "Conv" in text and "why: " in text


def test_inspect_answers_for_every_source_node_after_the_whole_pipeline(shared: Place) -> None:
    names = [node.name for node in onnx.load(shared.root / "model.onnx").graph.node]
    for name in names:
        found = shared.run("inspect", shared.dist / "one", "--node", name, "--json").json
        assert found["node"] == name and found["operators"], name
        assert all(one["precision"] == "fp32" and one["why"] for one in found["operators"])


def test_inspect_of_an_unknown_node_tells_near_names(shared: Place) -> None:
    outcome = shared.run("inspect", shared.dist / "one", "--node", "conv_aa")
    assert outcome.code == 2
    assert "conv_a" in outcome.err


def test_inspect_prints_plan_parity_and_passes(shared: Place) -> None:
    text = shared.run("inspect", shared.dist / "one").out
    assert "parity: passed" in text
    assert "fuse-conv-affine" in text
    value = shared.run("inspect", shared.dist / "one", "--json").json
    assert value["manifest"]["device"] == "one"


def test_diff_tells_what_changed_from_cause_to_effect(shared: Place, delivered: Place) -> None:
    assert shared.run("diff", shared.dist, shared.dist).out == "no difference\n"
    path = delivered.dist / "one" / "manifest.json"
    path.write_text(path.read_text().replace('"model.onnx"', '"other.onnx"'))
    assert shared.run("diff", shared.dist, delivered.dist).code == 2
    value = json.loads(path.read_text())
    value["inputs"]["model"]["sha256"] = "0" * 64
    path.write_text(json.dumps(value))
    outcome = shared.run("diff", shared.dist / "one", delivered.dist / "one", "--json")
    assert [(change["section"], change["name"], change["because"]) for change in outcome.json] == [
        ("inputs", "model", [])
    ]


def test_diff_of_what_is_no_build_is_code_2(shared: Place, tmp_path: Path) -> None:
    assert shared.run("diff", shared.dist, tmp_path).code == 2
    assert shared.run("diff", shared.dist, shared.dist / "one").code == 2
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "manifest.json").write_text("{")
    half = shared.run("diff", shared.dist, tmp_path)
    assert half.code == 2 and "has not come to its end" in half.err


def test_plan_prints_reasons_in_text_and_json(shared: Place) -> None:
    text = shared.run("plan", shared.fleet)
    assert text.code == 0, text.err
    assert "precision" in text.out
    plans = shared.run("plan", shared.fleet, "--json").json["plans"]
    assert [plan["device"] for plan in plans] == ["one", "two"]
    assert all(decision["reason"] for plan in plans for decision in plan["decisions"].values())


def test_plan_imports_no_toolchain(shared: Place) -> None:
    fleet = shared.root / "all.yaml"
    devices = {"a": "raspberry-pi-5", "b": "intel-n100", "c": "nvidia-t4"}
    entries = {name: {"profile": profile} for name, profile in devices.items()}
    fleet.write_text(json.dumps({"schema": 1, "model": "model.onnx", "devices": entries}))
    code = (
        "import sys; from compiler.plan.jobs import plan_fleet; from compiler.plan.plan import BuildOptions; "
        "from pathlib import Path; plan_fleet(Path(sys.argv[1]), BuildOptions()); "
        "print(*sorted({'tvm', 'openvino', 'tensorrt_rtx', 'tensorrt', 'onnxsim', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fleet)], env=shared.env, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    "args",
    [
        ("targets",),
        ("profiles", "list"),
        ("profiles", "show", "intel-n100"),
        ("profiles", "detect"),
        ("profiles", "check", "intel-n100"),
        ("cache", "info"),
        ("cache", "gc"),
    ],
    ids=" ".join,
)
def test_command_gives_text_or_one_json_document(shared: Place, args: tuple[str, ...]) -> None:
    text, value = shared.run(*args), shared.run(*args, "--json")
    assert (text.code, value.code) == (0, 0), text.err + value.err
    assert text.out.strip()
    assert value.json


@pytest.mark.parametrize(
    "args",
    [
        ("build", "none.yaml"),
        ("plan", "none.yaml"),
        ("verify", "none"),
        ("run", "none", "a.npz", "b.npz"),
        ("bench", "none"),
        ("inspect", "none"),
        ("diff", "none", "nothing"),
        ("finish", "none"),
        ("profiles", "show", "none"),
        ("profiles", "check", "none"),
        ("cache", "import", "none.tar"),
        ("build",),
        ("no-such-command",),
    ],
    ids=" ".join,
)
def test_failing_command_says_so_on_stderr_and_in_one_json_document(shared: Place, args: tuple[str, ...]) -> None:
    text, value = shared.run(*args), shared.run(*args, "--json")
    assert (text.code, value.code) == (2, 2), text.err
    assert text.out == ""
    assert text.err.startswith("error: ")
    assert value.json["exit_code"] == 2
    assert value.json["what"]


def test_cache_can_be_carried_to_another_machine(shared: Place, tmp_path: Path) -> None:
    exported = shared.run("cache", "export", tmp_path / "cache.tar", "--json").json
    imported = shared.run("cache", "import", tmp_path / "cache.tar", "--cache", tmp_path / "other", "--json").json
    assert exported["entries"] == imported["entries"] > 0
    assert shared.run("cache", "import", tmp_path / "cache.tar", "--cache", tmp_path / "other", "--json").json == {
        "entries": 0
    }
