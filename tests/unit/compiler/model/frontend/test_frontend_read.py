"""Every bad model file gives its message, and every harmless oddity is read."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from compiler.errors import CompilerError, InvalidModel, UnsupportedModel
from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, free_dims, read_model
from compiler.model.frontend.apart import check_apart
from compiler.model.frontend.read import Imported
from compiler.model.frontend.wire import varint

GOOD = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1,2,3,4,5,6}>
{ [mul] h = MatMul (x, w) [act] y = Relu (h) }
"""


def model(text: str = GOOD) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def read(proto: onnx.ModelProto, folder: Path) -> Imported:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializePartialToString())
    return read_model(path)


def message(proto: onnx.ModelProto, folder: Path, error: type[CompilerError] = InvalidModel) -> str:
    with pytest.raises(error) as caught:
        read(proto, folder)
    assert "model.onnx" in caught.value.where
    return str(caught.value)


def test_a_good_model_is_read_without_notes(tmp_path: Path) -> None:
    found = read(model(), tmp_path)
    assert found.notes == ()
    assert [node.name for node in found.model.graph] == ["mul", "act"]


def test_a_missing_file_names_the_models_that_are_there(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "face.onnx")
    with pytest.raises(InvalidModel, match=r"no such file[\s\S]*face\.onnx"):
        read_model(tmp_path / "fase.onnx")


def test_a_folder_is_refused_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="a folder, not an ONNX file"):
        read_model(tmp_path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(InvalidModel, match=r"empty \(0 bytes\)"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_names_the_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    path.chmod(0)
    with pytest.raises(InvalidModel, match="Permission denied"):
        read_model(path)


def test_a_path_that_no_file_system_takes_is_refused() -> None:
    for path in ("m" * 5000, "m\0.onnx"):
        with pytest.raises(InvalidModel, match=r"cannot be read|no such file"):
            read_model(path)


def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InvalidModel, match="no regular file"):
        read_model(tmp_path / "pipe.onnx")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x89HDF\r\n", "HDF5"),
    ],
)
def test_a_file_of_another_kind_is_recognised(tmp_path: Path, head: bytes, kind: str) -> None:
    (tmp_path / "m.onnx").write_bytes(head)
    with pytest.raises(InvalidModel, match=kind):
        read_model(tmp_path / "m.onnx")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    data = model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[:-5])
    with pytest.raises(InvalidModel, match="cut off"):
        read_model(tmp_path / "m.onnx")


def test_a_nesting_bomb_is_refused(tmp_path: Path) -> None:
    data = b""
    for _ in range(200):  # graph { node { attribute { type: GRAPH, g: ... } } }
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + varint(len(data)) + data
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a" + varint(len(data)) + data)
    with pytest.raises(InvalidModel, match="nested too deeply"):
        read_model(tmp_path / "m.onnx")


def test_graphs_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    inner = "Identity (x)"
    for depth in range(26):
        inner = (
            f"If (c) <then_branch = t{depth} () => (float y{depth}) {{ y{depth} = {inner} }}, "
            f"else_branch = e{depth} () => (float z{depth}) {{ z{depth} = Identity (x) }}>"
        )
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float x, bool c) => (float y) {{ y = {inner} }}'
    assert "more than 24 deep" in message(model(text), tmp_path, UnsupportedModel)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda m: m.ClearField("graph"), InvalidModel, "holds no graph"),
        (lambda m: setattr(m, "ir_version", 99), UnsupportedModel, "IR version 99"),
        (lambda m: setattr(m, "ir_version", 2), InvalidModel, "IR version 2"),
        (lambda m: m.ClearField("opset_import"), InvalidModel, "does not say which operator sets"),
        (lambda m: setattr(m.opset_import[0], "version", 6), UnsupportedModel, "oldest supported is 7"),
        (lambda m: setattr(m.opset_import[0], "version", 999), UnsupportedModel, "newest known here"),
        (lambda m: m.opset_import.append(onnx.helper.make_opsetid("", 11)), InvalidModel, "in 2 versions"),
        (lambda m: m.graph.ClearField("output"), InvalidModel, "no outputs"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Rellu"), InvalidModel, r"Rellu 'act'.*no operator.*\s.*'Relu'"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Swish"), InvalidModel, "came with opset 24"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Upsample"), InvalidModel, "opset 10 took it out"),
        (lambda m: setattr(m.graph.node[1], "domain", "acme"), InvalidModel, "'acme' is not among"),
        (
            lambda m: m.graph.node[1].input.__setitem__(0, "hh"),
            InvalidModel,
            r"Relu 'act'.*'hh', which nothing.*\s.*'h'",
        ),
        (lambda m: m.graph.node[1].output.__setitem__(0, "h"), InvalidModel, "'h' is made twice: by MatMul 'mul'"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), InvalidModel, "cycle: .*MatMul 'mul' → Relu 'act'|cycle"),
        (lambda m: setattr(m.graph.output[0], "name", "z"), InvalidModel, "output 'z' is made by no node"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 7), InvalidModel, "mul"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 5), InvalidModel, r"'w'.*its shape \[5, 2\] needs"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -3), InvalidModel, "negative dimension"),
        (lambda m: m.graph.initializer[0].dims.extend([2**40, 2**40]), InvalidModel, "would be"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 77), InvalidModel, "element type 77"),
        (lambda m: setattr(m.graph.initializer[0], "name", ""), InvalidModel, "initializer has no name"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), InvalidModel, "'w' is there 2 times"),
        (lambda m: m.graph.node[1].attribute.add(name="alpha", type=1), InvalidModel, "alpha"),
    ],
)
def test_a_broken_model_says_what_is_wrong(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], error: type[CompilerError], said: str
) -> None:
    proto = model()
    change(proto)
    with pytest.raises(error, match=said):
        read(proto, tmp_path)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node[0].op_type = "MatMull"
    proto.graph.node[1].input[0] = "nowhere"
    proto.graph.initializer[0].dims[0] = 9
    said = message(proto, tmp_path)
    assert "3 problems" in said and "MatMull" in said and "'nowhere'" in said and "[9, 2]" in said


def test_names_that_are_not_text_are_refused(tmp_path: Path) -> None:
    data = model().SerializeToString().replace(b"Relu", b"\xffelu")
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InvalidModel, match="not text"):
        read_model(tmp_path / "m.onnx")


def test_a_domain_that_is_imported_again_in_the_same_version_says_nothing_new(tmp_path: Path) -> None:
    """Merged models have it, text2tashkeel's ensemble is one; ONNX Runtime opens them."""
    proto = model()
    proto.opset_import.extend([onnx.helper.make_opsetid("ai.onnx", proto.opset_import[0].version)])
    assert read(proto, tmp_path).model.graph.opset_imports[""] == proto.opset_import[0].version


def test_an_operator_of_a_foreign_domain_is_kept_for_the_target_to_judge(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[2] x) => (float[2] y) { y = acme.Magic (x) }'
    assert read(model(text), tmp_path).model.graph[0].domain == "acme"


def test_a_function_and_subgraphs_pass_unharmed(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2] x, bool c) => (float[2] y)
    { h = local.twice (x)
      y = If (c) <then_branch = t () => (float[2] a) { a = Neg (h) },
                  else_branch = e () => (float[2] b) { b = Abs (h) }> }
    <domain: "local", opset_import: ["" : 17]> twice (q) => (r) { r = Add (q, q) }
    """
    found = read(model(text), tmp_path)
    assert [node.name for node in found.model.graph.all_nodes()] == ["twice_0", "If_0", "Neg_0", "Abs_0"]
    assert len(found.model.functions) == 1
    onnx.checker.check_model(ir.to_proto(found.model), full_check=True)


def test_nodes_get_stable_unique_names(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y)
    { a = Relu (x) [Relu_0] b = Relu (a) [same] c = Neg (b) [same] y = Neg (c) }
    """
    names = [node.name for node in read(model(text), tmp_path).model.graph]
    assert names == ["Relu_1", "Relu_0", "same", "same_0"]


def test_nodes_out_of_order_are_sorted_and_noted(tmp_path: Path) -> None:
    proto = model()
    proto.graph.node.reverse()
    found = read(proto, tmp_path)
    assert [node.name for node in found.model.graph] == ["mul", "act"]
    assert "out of order" in found.notes[0]


def test_initializers_leave_the_inputs_of_an_old_model(tmp_path: Path) -> None:
    proto = model()
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]))
    found = read(proto, tmp_path)
    assert [value.name for value in found.model.graph.inputs] == ["x"]
    assert found.model.ir_version == 4


def test_training_information_is_left_out_and_noted(tmp_path: Path) -> None:
    proto = model()
    proto.training_info.add()
    assert "training information" in read(proto, tmp_path).notes[0]


def test_sparse_tensors_become_dense(tmp_path: Path) -> None:
    proto = model()
    proto.graph.ClearField("initializer")
    values = numpy_helper.from_array(np.array([4.0, 5.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([0, 5], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    weight = read(proto, tmp_path).model.graph.initializers["w"].const_value
    assert weight is not None and weight.numpy().tolist() == [[4, 0], [0, 0], [0, 5]]


def test_a_sparse_tensor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.ClearField("initializer")
    values = numpy_helper.from_array(np.array([4.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([99], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    assert "outside the shape" in message(proto, tmp_path)


def test_a_huge_sparse_tensor_is_refused_and_not_written_out(tmp_path: Path) -> None:
    proto = model()
    proto.graph.ClearField("initializer")
    values = numpy_helper.from_array(np.array([4.0], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**21, 2**21]))
    assert "dense" in message(proto, tmp_path)


def test_weights_that_are_not_finite_are_noted(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([[1, np.nan]] * 3, np.float32), "w"))
    assert read(proto, tmp_path).notes == ("weight 'w' holds 3 values that are NaN or infinite",)


def test_wrong_shapes_stated_inside_the_graph_are_inferred_anew(tmp_path: Path) -> None:
    proto = model()
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 7]))
    found = read(proto, tmp_path)
    assert "inferred anew" in found.notes[0]
    assert found.model.graph[0].outputs[0].shape == ir.Shape(["N", 2])


def test_string_tensors_are_read(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g () => (string[2] y) <string[2] s = {"a", "b"}> { y = Identity (s) }'
    )
    tensor = read(model(text), tmp_path).model.graph.initializers["s"].const_value
    assert isinstance(tensor, ir.StringTensor) and list(tensor.string_data()) == [b"a", b"b"]


def external(folder: Path, location: str, **entries: int) -> onnx.ModelProto:
    """The good model with its weight at that place."""
    proto = model()
    tensor = proto.graph.initializer[0]
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return proto


def test_external_data_is_read_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8 + np.arange(6, dtype=np.float32).tobytes())
    found = read(external(tmp_path, "w.bin", offset=8, length=24), tmp_path)
    weight = found.model.graph.initializers["w"].const_value
    assert weight is not None and weight.numpy().tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("location", "entries", "said"),
    [
        ("../w.bin", {}, "climbs out"),
        ("sub/../../w.bin", {}, "climbs out"),
        ("/etc/passwd", {}, "not a relative path"),
        ("link.bin", {}, "is a link to"),
        ("sub/w.bin", {}, "is a link to"),
        ("gone.bin", {}, "missing"),
        ("", {}, "names no file"),
        (".", {}, "no regular file"),
        ("short.bin", {}, "ends at byte 24 of 'short.bin', which has 10"),
        ("w.bin", {"offset": 1, "length": 24}, "ends at byte 25"),
        ("w.bin", {"offset": -8}, "negative"),
        ("w.bin", {"length": 20}, "20 bytes long"),
        ("loop.bin", {}, "cannot be read|is a link|missing"),
    ],
)
def test_external_data_in_a_bad_place_is_refused(
    tmp_path: Path, location: str, entries: dict[str, int], said: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for file in (tmp_path / "w.bin", home / "w.bin"):
        file.write_bytes(b"\0" * 24)
    (home / "short.bin").write_bytes(b"\0" * 10)
    (home / "link.bin").symlink_to(tmp_path / "w.bin")
    (home / "sub").symlink_to(tmp_path)
    (home / "loop.bin").symlink_to(home / "loop.bin")
    with pytest.raises(InvalidModel, match=said) as caught:
        read(external(home, location, **entries), home)
    assert "initializer 'w'" in str(caught.value)


def test_an_offset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 24)
    proto = external(tmp_path, "w.bin")
    proto.graph.initializer[0].external_data.add(key="offset", value="many")
    assert "no number" in message(proto, tmp_path)


def test_a_map_output_is_unsupported_rather_than_invalid(tmp_path: Path) -> None:
    proto = model()
    proto.graph.output.add(name="h").type.map_type.key_type = TensorProto.STRING
    assert "map" in message(proto, tmp_path, UnsupportedModel)


def test_a_zip_that_is_called_onnx_is_recognised(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.onnx", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InvalidModel, match="zip"):
        read_model(tmp_path / "m.onnx")


def test_a_vector_of_any_claimed_length_costs_no_memory(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[20,10] x, int64[1099511627776] starts, int64[2] ends) => (float[A,B] y) { y = Slice (x, starts, ends) }
    """
    found = read(model(text), tmp_path)
    assert bind_shapes(found.model, {"batch": Range(20, 20, 20)}).model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_an_equation_that_onnx_never_finishes_is_stopped_by_its_own_processor_time() -> None:
    """The child is stopped for longer than the checks may take, as on a machine that is busy with other work."""
    text = '<ir_version: 13, opset_import: ["" : 28]> g (double x) => (double y) { y = Einsum <equation = "ab"> (x) }'
    proto = model(text)
    proto.graph.node[0].attribute[0].s = b"\0\0"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(check_apart, proto, strict=True, timeout_s=1)
        child = _fork("fleetc-check")
        child.suspend()
        time.sleep(2)
        assert not waiting.done()
        child.resume()
        verdict = waiting.result()
    assert verdict.failed == "crash" and "does not come to an end on this model within 1 s" in verdict.said


def _fork(name: str) -> psutil.Process:
    """The process that a fork server of this one forks, as soon as it has its name."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # servers of earlier tests end meanwhile
                if (
                    process.name() == name and psutil.Process(process.ppid()).name() != name
                ):  # its guardian has the name, too
                    return process
        time.sleep(0.01)


@pytest.mark.parametrize("as_raw", [True, False])
def test_large_weights_stay_in_the_file(tmp_path: Path, as_raw: bool) -> None:
    proto = model()
    weight = np.random.default_rng(0).standard_normal((20000, 2), dtype=np.float32)
    stored = numpy_helper.from_array(weight, "w")
    if not as_raw:
        stored = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.ravel())
    proto.graph.initializer[0].CopyFrom(stored)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "small"))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 20000
    tensor = read(proto, tmp_path).model.graph.initializers["w"].const_value
    assert tensor is not None and np.array_equal(tensor.numpy(), weight)
    assert isinstance(tensor, ir.Tensor) == as_raw


def test_a_large_weight_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((20000, 2), np.float32), "w"))
    proto.graph.initializer[0].dims[0] = 19999
    assert "holds 160000 bytes, its shape [19999, 2] needs 159992" in message(proto, tmp_path)


def test_a_graph_written_in_two_fields_is_read_whole(tmp_path: Path) -> None:
    whole, rest = model(), onnx.ModelProto()
    rest.graph.initializer.append(whole.graph.initializer[0])
    whole.graph.ClearField("initializer")
    (tmp_path / "m.onnx").write_bytes(whole.SerializeToString() + rest.SerializePartialToString())
    assert list(read_model(tmp_path / "m.onnx").model.graph.initializers) == ["w"]


def test_placeholders_of_unknown_dimensions_become_unnamed(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,C,3] x) => (float[N,C,3] y) { y = Relu (x) }"""
    proto = model(text)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
        value.type.tensor_type.shape.dim[1].dim_param = "?"
    found = read(proto, tmp_path)
    assert "4 dimensions were written as -1 or `?`; they are unnamed now" in found.notes
    assert free_dims(found.model) == ("x.0", "x.1")
