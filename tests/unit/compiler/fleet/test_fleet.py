"""Fleet files are read strictly, defaults flow down to devices, and limits are read for the gates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.errors import FleetError
from compiler.fleet import Fleet, Limits, Range, load_fleet

FLEET = """\
schema: 1
model: face.onnx
batch: {min: 1, opt: 2, max: 4}
dims: {sequence: 64}
precision: fp32
devices:
  door-camera: {profile: raspberry-pi-5}
  gate-server: {profile: nvidia-l4, batch: 8, precision: fp16, dims: {width: {min: 1, opt: 1, max: 9}}}
  own: {profile: boards/own.yaml}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "face.onnx").touch()
    (tmp_path / "boards").mkdir()
    (tmp_path / "pairs").mkdir()
    (tmp_path / "boards/own.yaml").touch()
    return tmp_path


def load(folder: Path, text: str = FLEET) -> Fleet:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return load_fleet(file)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(FleetError) as caught:
        load(folder, text)
    return str(caught.value)


def test_devices_keep_their_order_and_paths_become_absolute(folder: Path) -> None:
    fleet = load(folder)
    assert list(fleet.devices) == ["door-camera", "gate-server", "own"]
    assert fleet.model == folder / "face.onnx" and fleet.path == folder / "fleet.yaml"
    assert fleet.devices["own"].profile == str(folder / "boards/own.yaml")
    assert fleet.devices["door-camera"].profile == "raspberry-pi-5"


def test_a_relative_fleet_path_gives_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder)
    monkeypatch.chdir(folder)
    assert load_fleet("fleet.yaml").model == folder / "face.onnx"


def test_a_device_overrides_the_defaults_of_the_fleet(folder: Path) -> None:
    devices = load(folder).devices
    camera, server = devices["door-camera"], devices["gate-server"]
    assert (camera.batch, camera.precision, camera.dims) == (Range(1, 2, 4), "fp32", {"sequence": Range(64, 64, 64)})
    assert (server.batch, server.precision) == (Range(8, 8, 8), "fp16")
    assert server.dims == {"sequence": Range(64, 64, 64), "width": Range(1, 1, 9)}


def test_without_defaults_the_batch_is_one_and_the_precision_is_left_to_the_plan(folder: Path) -> None:
    device = load(folder, "schema: 1\nmodel: face.onnx\ndevices: {a: {profile: nvidia-t4}}\n").devices["a"]
    assert (device.batch, device.precision, device.dims) == (Range(1, 1, 1), "auto", {})
    assert device.place == f"{folder}/fleet.yaml:3 devices.a"


def test_a_range_reads_as_a_statement() -> None:
    assert (str(Range(1, 8, 32)), str(Range(4, 4, 4))) == ("1..32 (fastest at 8)", "4")
    assert Range(4, 4, 4).is_fixed and not Range(1, 1, 4).is_fixed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{min: 1, opt: 2, max: 4}", "{min: 1, opt: 5, max: 4}", ":3 batch: must hold min <= opt <= max, got "),
        ("{min: 1, opt: 2, max: 4}", "{min: 1, max: 4}", ":3 batch.opt: is required and missing"),
        ("{min: 1, opt: 2, max: 4}", "0", ":3 batch: must be 1 or more"),
        ("{min: 1, opt: 2, max: 4}", "{min: -1, opt: 2, max: 4}", ":3 batch.min: must be greater than or equal to 0"),
        ("{min: 1, opt: 2, max: 4}", "many", ":3 batch: expected an integer or {min, opt, max}, got 'many'"),
        ("{min: 1, opt: 2, max: 4}", "true", "batch: expected an integer or {min, opt, max}, got true"),
        ("{min: 1, opt: 2, max: 4}", "[1, 2, 4]", "batch: expected an integer or {min, opt, max}"),
        ("batch: 8", "bach: 8", ":8 devices.gate-server.bach: unknown key; did you mean 'batch'?"),
        ("precision: fp16", "precision: half", ":8 devices.gate-server.precision: expected 'auto', 'fp32', 'fp16'"),
        ("door-camera:", "../camera:", "must match pattern"),
        ("door-camera:", "Camera:", "must match pattern"),
        ("door-camera:", f"{'x' * 65}:", "must match pattern"),
        ("door-camera:", "build.json:", "must not end in .json"),
        ("door-camera:", "gate-server:", ":8 devices.gate-server: repeated key"),
        ("raspberry-pi-5", "raspberry-pie-5", ":7 devices.door-camera.profile: no built-in profile is named"),
        ("boards/own.yaml", "boards/none.yaml", ":9 devices.own.profile: there is no file"),
        ("boards/own.yaml", "boards/", ":9 devices.own.profile: there is no file"),
        ("face.onnx", "none.onnx", ":2 model: there is no file"),
        ("face.onnx", "boards", ":2 model: there is no file"),
        ("face.onnx", '"a\\0b"', ":2 model: there is no file"),
        ("face.onnx", "x" * 5000, ":2 model: there is no file"),
        ("face.onnx", "3", ":2 model: expected text, got 3"),
        ("schema: 1", "schema: 1\ncalibration: {path: none.npz}", ":2 calibration.path: expected a .npz or .npy file"),
        ("schema: 1", "schema: 1\ncalibration: {path: face.onnx}", ":2 calibration.path: expected a .npz or .npy file"),
        ("schema: 1", "schema: 1\ncalibration: {path: boards, samples: 0}", "calibration.samples: must be greater"),
        ("schema: 1", "schema: 1\nlimits: {latency_ms: 40ms}", "limits.latency_ms: expected a number of milliseconds"),
        ("schema: 1", "schema: 1\nlimits: {accuracy_drop_pct: 120}", "must be less than or equal to 100"),
        ("schema: 1\n", "", "schema: is required and missing"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_key(folder: Path, old: str, new: str, said: str) -> None:
    assert old in FLEET
    message = refusal(folder, FLEET.replace(old, new, 1))
    assert said in message and str(folder / "fleet.yaml") in message


def test_a_fleet_without_devices_is_refused(folder: Path) -> None:
    assert "devices: is empty" in refusal(folder, "schema: 1\nmodel: face.onnx\ndevices: {}\n")
    assert "devices: is required" in refusal(folder, "schema: 1\nmodel: face.onnx\n")


def test_everything_that_is_missing_is_told_at_once(folder: Path) -> None:
    text = FLEET.replace("face.onnx", "none.onnx").replace("raspberry-pi-5", "x").replace("own.yaml", "x.yaml")
    assert refusal(folder, text).startswith("3 problems:")


def test_unknown_keys_are_told_together_with_what_is_missing(folder: Path) -> None:
    said = refusal(folder, "modle: x\n" + FLEET.replace("nvidia-l4", "nvidia-l44"))
    assert "modle: unknown key" in said and "'nvidia-l44'" in said


@pytest.mark.parametrize("name", ["boards", "faces.npz", "faces.npy"])
def test_calibration_data_is_found_beside_the_fleet_file(folder: Path, name: str) -> None:
    if name != "boards":
        (folder / name).touch()
    fleet = load(folder, FLEET + f"calibration: {{path: {name}, samples: 16}}\n")
    assert fleet.calibration is not None
    assert (fleet.calibration.path, fleet.calibration.samples) == (folder / name, 16)


LIMITS = "evaluation: {task: verification, path: pairs}\nlimits: {accuracy_drop_pct: 2.0, memory_reduction_pct: 40}\n"


def test_limits_are_read_and_a_device_overrides_those_of_the_fleet(folder: Path) -> None:
    fleet = load(folder, FLEET.replace("raspberry-pi-5", "raspberry-pi-5, limits: {latency_ms: 40}") + LIMITS)
    assert fleet.limits == Limits(accuracy_drop_pct=2, memory_reduction_pct=40)
    assert fleet.devices["door-camera"].limits == Limits(accuracy_drop_pct=2, memory_reduction_pct=40, latency_ms=40)
    assert fleet.evaluation is not None and fleet.evaluation.path == folder / "pairs"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, len(FLEET)),
    st.integers(0, 9),
    st.sampled_from(["", "\n", ":", "[", "{", "*a", "-", "\t", "0", "~", "é"]),
)
def test_a_damaged_fleet_is_read_or_refused_and_never_more(folder: Path, at: int, length: int, piece: str) -> None:
    try:
        fleet = load(folder, FLEET[:at] + piece + FLEET[at + length :])
    except FleetError as refused:
        assert str(refused)
    else:
        assert fleet.devices


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluation: {task: verifcation, path: pairs}", "evaluation.task: must be verification, classification,"),
        (
            "evaluation: {task: verification, path: none}",
            "evaluation.path: expected a file, a folder or module:function",
        ),
        ("evaluation: {task: verification, path: pairs, far: [0.001, 1]}", "evaluation.far[1]: must be less than 1"),
        ("evaluation: {task: verification, path: pairs, images: none}", "evaluation.images: there is no folder"),
        ("evaluation: {task: classification, path: pairs, classes: x}", "evaluation.classes: there is no file"),
        ("preprocess: {mean: [1, 2]}", "preprocess: mean must hold one number, or 3 for rgb"),
        ("preprocess: {scale: 0}", "preprocess.scale: must be greater than 0"),
        ("preprocess: {colour: rgb}", "preprocess.colour: unknown key; did you mean 'color'?"),
    ],
)
def test_a_mistake_in_tasks_and_data_is_told_with_its_key(folder: Path, line: str, said: str) -> None:
    assert said in refusal(folder, f"{FLEET}{line}\n")


def test_data_and_metrics_may_be_functions_and_keep_the_folder_of_the_fleet(folder: Path) -> None:
    lines = "evaluation: {task: own.metrics:accuracy, path: own.data:samples}\ncalibration: {path: own.data:samples}\n"
    fleet = load(folder, FLEET + lines + "preprocess: {size: [9, 8], margin_pct: 10}\n")
    assert fleet.evaluation is not None and fleet.evaluation.path == folder / "own.data:samples"
    assert fleet.preprocess is not None and fleet.preprocess.size == (9, 8)


def test_a_size_may_be_a_sum_of_others(folder: Path) -> None:
    dims = "dims: {past: {min: 0, opt: 8, max: 16}, sequence: 4, total: past + sequence, next: total + 1}"
    device = "own: {profile: boards/own.yaml, dims: {sequence: {min: 1, opt: 2, max: 3}}}"
    fleet = load(folder, FLEET.replace("dims: {sequence: 64}", dims).replace("own: {profile: boards/own.yaml}", device))
    assert fleet.devices["door-camera"].dims["total"] == Range(4, 12, 20)
    assert fleet.devices["own"].dims["total"] == Range(1, 10, 19)  # of the device's own sizes
    assert fleet.devices["own"].dims["next"] == Range(2, 11, 20)


@pytest.mark.parametrize("text", ["past + sequence", "total + 1", "+", "sequence + -1"])
def test_a_sum_of_what_has_no_size_is_refused(folder: Path, text: str) -> None:
    message = refusal(folder, FLEET.replace("dims: {sequence: 64}", f"dims: {{sequence: 64, total: {text!r}}}"))
    assert "'total: " in message and "such as past + sequence" in message


def test_an_empty_batch_is_refused_and_other_dimensions_may_be_empty(folder: Path) -> None:
    message = refusal(folder, FLEET.replace("batch: {min: 1,", "batch: {min: 0,"))
    assert "batch: must be 1 or more" in message
    assert (
        load(folder, FLEET.replace("width: {min: 1,", "width: {min: 0,")).devices["gate-server"].dims["width"].min == 0
    )
