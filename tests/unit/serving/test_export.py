"""Export to other servers: configs as they are written, and read back by Triton's own message."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from compiler.target import Artifact, DataError, TensorSpec
from serving.export import MARK, Exported, export_ovms, export_triton
from serving.exporting import Backend, Batching, choose_backend, choose_batching, to_text, triton_config
from serving.protocol import DATATYPES, Signature

OPENVINO = {
    "INFERENCE_NUM_THREADS": "4",
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": "2",
    "PERFORMANCE_HINT": "THROUGHPUT",
}
THREADS = {"intra_op_num_threads": 4, "inter_op_num_threads": 1}
FILES = {
    "openvino": ("payload/model.xml", "payload/model.bin", "payload/config.json"),
    "onnxruntime": ("payload/model.onnx", "payload/model.data", "payload/config.json"),
    "reference": ("payload/model.onnx",),
    "tensorrt": ("payload/engine.bin",),
    "tvm": ("run",),
}
SIGNATURE = Signature(
    (TensorSpec("image", "float32", ("batch", 3, 8, 8)),),
    (TensorSpec("scores", "float32", ("batch", 4)),),
    {"batch": (1, 16)},
    "batch",
)
SERVICE_S = {1: 0.002, 2: 0.003, 4: 0.005, 8: 0.012, 16: 0.030}
GOLDEN = """\
name: "kiosk"
backend: "openvino"
max_batch_size: 16
input {
  name: "image"
  data_type: TYPE_FP32
  dims: [3, 8, 8]
}
output {
  name: "scores"
  data_type: TYPE_FP32
  dims: [4]
}
instance_group {
  count: 1
  kind: KIND_CPU
}
dynamic_batching {
  preferred_batch_size: [2, 4]
  max_queue_delay_microseconds: 2000
}
parameters {
  key: "INFERENCE_NUM_THREADS"
  value {
    string_value: "4"
  }
}
parameters {
  key: "NUM_STREAMS"
  value {
    string_value: "2"
  }
}
parameters {
  key: "PERFORMANCE_HINT"
  value {
    string_value: "THROUGHPUT"
  }
}
"""


def artifact(root: Path, target: str = "openvino", **facts: object) -> Artifact:
    config = {"openvino": OPENVINO, "onnxruntime": THREADS}.get(target, {})
    for file in FILES[target]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(config) if file.endswith("json") else file)
    inputs, outputs = SIGNATURE.inputs, SIGNATURE.outputs
    return Artifact(root, target, "fp32", inputs, outputs, FILES[target], {}, {"config": config, "isa": [], **facts})


def exported(root: Path, target: str = "openvino", **facts: object) -> Exported:
    return Exported(artifact(root / "artifact", target, **facts), SIGNATURE, SERVICE_S, 0.05, "0" * 64)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def model_config(text: str) -> Any:
    """Triton's message, without the package around it, which needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    places = list(package.submodule_search_locations or ()) if package else []
    path = Path(places[0], "grpc", "model_config_pb2.py") if places else Path()
    if not path.is_file():
        pytest.skip("tritonclient has no model_config_pb2")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(text, module.ModelConfig())


def test_an_ir_is_a_model_of_tritons_openvino_backend(tmp_path: Path) -> None:
    place = export_triton(exported(tmp_path), tmp_path / "models", name="kiosk", is_python=False)
    assert (place / "config.pbtxt").read_text() == GOLDEN
    assert set(contents(place)) == {"1/model.xml", "1/model.bin", "config.pbtxt", MARK}
    config = model_config(GOLDEN)
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert config.parameters["NUM_STREAMS"].string_value == "2"


@pytest.mark.parametrize(
    ("target", "is_python", "files", "backend"),
    [
        ("onnxruntime", False, {"1/model.onnx", "1/model.data"}, "onnxruntime"),
        ("reference", False, {"1/model.onnx"}, "onnxruntime"),
        ("reference", True, {"1/model.onnx", "1/model.py", "1/config.json"}, "python"),
        ("openvino", True, {"1/model.xml", "1/model.bin", "1/model.py", "1/config.json"}, "python"),
    ],
)
def test_each_target_has_the_files_that_its_backend_opens(
    tmp_path: Path, target: str, is_python: bool, files: set[str], backend: str
) -> None:
    place = export_triton(exported(tmp_path, target), tmp_path / "models", name="m", is_python=is_python)
    assert set(contents(place)) == files | {"config.pbtxt", MARK}
    config = model_config((place / "config.pbtxt").read_text())
    assert config.backend == backend
    assert config.optimization.graph.level == (2 if (target, is_python) == ("reference", False) else 0)
    if is_python and target == "openvino":
        assert json.loads((place / "1/config.json").read_text()) == OPENVINO


def test_an_engine_is_a_plan_on_a_gpu(tmp_path: Path) -> None:
    subject = exported(tmp_path, "tensorrt", library="tensorrt")
    place = export_triton(subject, tmp_path / "models", name="m", is_python=False)
    config = model_config((place / "config.pbtxt").read_text())
    assert (config.platform, config.instance_group[0].kind) == ("tensorrt_plan", 1)
    assert (place / "1/model.plan").is_file()


@pytest.mark.parametrize(
    ("target", "facts", "is_python", "says"),
    [
        ("tvm", {}, False, "ARM bundle"),
        ("tensorrt", {"library": "tensorrt-rtx"}, False, "TensorRT-RTX"),
        ("tensorrt", {"library": "tensorrt"}, True, "Python backend"),
        ("openvino", {"isa": ["avx2", "avx512_bf16"]}, False, "would compute in bfloat16"),
        ("openvino", {"config": {**OPENVINO, "INFERENCE_PRECISION_HINT": "f16"}}, False, "compute in f16"),
    ],
)
def test_what_triton_cannot_run_as_it_was_judged_is_refused(
    tmp_path: Path, target: str, facts: dict[str, object], is_python: bool, says: str
) -> None:
    with pytest.raises(DataError, match=says) as error:
        export_triton(exported(tmp_path, target, **facts), tmp_path / "models", name="m", is_python=is_python)
    assert error.value.remedy or "problems" in error.value.what
    assert not (tmp_path / "models").exists()


def test_wide_integers_are_refused_where_no_server_looks_at_them(tmp_path: Path) -> None:
    subject = exported(tmp_path)
    wide = replace(subject.artifact, inputs=(TensorSpec("ids", "int64", ("batch", 8)),))
    with pytest.raises(DataError, match="32 bits"):
        export_ovms(replace(subject, artifact=wide), tmp_path / "ovms", name="m")
    with pytest.raises(DataError, match="--python"):
        choose_backend(wide, is_python=False)
    assert choose_backend(wide, is_python=True) is Backend.PYTHON


def test_the_model_server_gets_every_setting_of_the_artifact(tmp_path: Path) -> None:
    place = export_ovms(exported(tmp_path), tmp_path / "ovms", name="kiosk")
    (entry,) = json.loads((place / "config.json").read_text())["model_config_list"]
    assert entry["config"] == {
        "name": "kiosk",
        "base_path": "kiosk",
        "target_device": "CPU",
        "nireq": 2,
        "plugin_config": OPENVINO,
    }
    assert set(contents(place)) == {"kiosk/1/model.xml", "kiosk/1/model.bin", "config.json", MARK}
    with pytest.raises(DataError, match="no backend"):
        export_ovms(exported(tmp_path, "reference"), tmp_path / "other", name="kiosk")


def test_only_an_earlier_export_of_the_same_model_is_replaced(tmp_path: Path) -> None:
    subject, models = exported(tmp_path), tmp_path / "models"
    place = export_triton(subject, models, name="m", is_python=False)
    before = contents(place)
    (place / "1/model.xml").write_text("old")
    export_triton(subject, models, name="m", is_python=False)
    assert contents(place) == before
    export_ovms(subject, tmp_path / "ovms", name="m")
    theirs = models / "theirs"
    theirs.mkdir()
    (theirs / "config.pbtxt").write_text("")
    for act in (
        lambda: export_triton(subject, models, name="theirs", is_python=False),
        lambda: export_ovms(subject, tmp_path / "ovms", name="other"),
        lambda: export_ovms(subject, place, name="m"),
    ):
        with pytest.raises(DataError, match="no earlier export"):
            act()
    assert contents(place) == before
    assert list(contents(theirs)) == ["config.pbtxt"]


@given(st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1e-5, 0.2)), st.floats(0.001, 0.2))
def test_a_batch_that_is_waited_for_is_in_time_and_worth_it(service_s: dict[int, float], slo_s: float) -> None:
    batching = choose_batching(SIGNATURE, service_s, slo_s=slo_s)
    assert batching.largest == 16
    for size in batching.preferred:
        assert batching.delay_us / 1e6 + 2 * service_s[batching.preferred[-1]] <= slo_s + 1e-6
        assert all(service_s[size] / size < service_s[other] / other for other in service_s if other < size)


def test_no_batches_where_the_server_may_not_choose_their_size() -> None:
    for sizes in ({"batch": (2, 8)}, {}):
        other = replace(SIGNATURE, sizes=sizes, batch="batch" if sizes else "")
        assert choose_batching(other, SERVICE_S, slo_s=0.05) == Batching(0)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
SPECS = st.lists(
    st.builds(
        TensorSpec,
        NAMES,
        st.sampled_from(sorted(DATATYPES)),
        st.lists(st.one_of(st.integers(0, 99), st.just("time")), min_size=1, max_size=4).map(lambda d: ("batch", *d)),
    ),
    min_size=1,
    max_size=4,
)


@given(SPECS, SPECS, st.booleans())
def test_names_types_and_sizes_are_the_artifacts(
    inputs: list[TensorSpec], outputs: list[TensorSpec], is_batched: bool
) -> None:
    signature = Signature(tuple(inputs), tuple(outputs), {"batch": (1, 8), "time": (1, 9)}, "batch" * is_batched)
    subject = Artifact(Path(), "reference", "fp32", signature.inputs, signature.outputs, (), {})
    batching = choose_batching(signature, SERVICE_S, slo_s=0.05)
    config = model_config(to_text(triton_config("m", subject, Backend.PYTHON, signature, batching)))
    assert config.max_batch_size == (8 if is_batched else 0)
    for specs, tensors in ((inputs, config.input), (outputs, config.output)):
        for spec, tensor in zip(specs, tensors, strict=True):
            sizes = [size if isinstance(size, int) else -1 for size in spec.shape]
            assert (tensor.name, list(tensor.dims)) == (spec.name, sizes[is_batched:])
            kind = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type]
            assert kind.name == f"TYPE_{DATATYPES[spec.dtype]}"
