"""A saved model is the same bytes each time, whole or absent, and reads back as what it was."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from compiler.errors import OutputError, StorageError
from compiler.model.frontend import read_model
from compiler.model.graph import graph_digest
from compiler.model.save import save_model


@pytest.fixture
def whole() -> ir.Model:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[2,3] x) => (float[2,2] y, int64[0] e) <float[3,2] w = {1,2,3,4,5,6}, int64[0] none = {}>
    { [mul] y = MatMul (x, w) [same] e = Identity (none) }"""
    found = ir.from_onnx_text(text)
    for name, dtype, size in (("i4", ir.DataType.INT4, 9001), ("b16", ir.DataType.BFLOAT16, 3000)):
        tensor = ir.tensor(np.resize([1, -2, 3], size).astype(dtype.numpy()), dtype=dtype, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape([size]))
        found.graph.register_initializer(value)
    return found


@pytest.mark.parametrize("external_above_bytes", [0, 1 << 30])
def test_what_is_saved_reads_back_and_runs(whole: ir.Model, tmp_path: Path, external_above_bytes: int) -> None:
    path = tmp_path / "m.onnx"
    save_model(whole, path, external_above_bytes=external_above_bytes)
    assert (tmp_path / "m.data").exists() == (external_above_bytes == 0)
    onnx.checker.check_model(str(path), full_check=True)
    assert graph_digest(read_model(path).model) == graph_digest(whole)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y, _) = session.run(None, {"x": np.ones((2, 3), np.float32)})
    assert y.tolist() == [[9, 12], [9, 12]]


@pytest.mark.parametrize("external_above_bytes", [0, 1 << 30])
def test_the_same_model_is_the_same_bytes(whole: ir.Model, tmp_path: Path, external_above_bytes: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_model(whole, tmp_path / name / "m.onnx", external_above_bytes=external_above_bytes)
    files = [[file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in ("a", "b")]
    assert files[0] == files[1]


def test_weights_that_are_copied_from_file_to_file_do_not_stay_in_memory(whole: ir.Model, tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    save_model(whole, first, external_above_bytes=0)
    read = ir.load(first)
    save_model(read, second, external_above_bytes=0)
    assert first.with_suffix(".data").read_bytes() == second.with_suffix(".data").read_bytes()
    outside = [value.const_value for value in read.graph.initializers.values()]
    assert [tensor.raw for tensor in outside if isinstance(tensor, ir.ExternalTensor)] == [None, None]


def test_what_shapes_are_inferred_from_stays_inside_the_model_file(whole: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert save_model(whole, path, external_above_bytes=0) == (path, tmp_path / "m.data")
    proto = onnx.load(path, load_external_data=False)
    outside = {one.name for one in proto.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == {"i4", "b16"}


def test_saving_leaves_the_model_as_it_was(whole: ir.Model, tmp_path: Path) -> None:
    before = graph_digest(whole)
    save_model(whole, tmp_path / "m.onnx")
    assert graph_digest(whole) == before and "w" in whole.graph.initializers


def test_a_model_can_be_saved_over_the_file_it_was_read_from(whole: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(whole, path, external_above_bytes=0)
    found = read_model(path).model
    save_model(found, path, external_above_bytes=0)
    assert graph_digest(read_model(path).model) == graph_digest(whole)


def test_a_folder_that_is_not_there_is_an_output_error(whole: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        save_model(whole, tmp_path / "gone" / "m.onnx")


def test_a_file_in_place_of_the_folder_is_an_output_error(whole: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        save_model(whole, tmp_path / "f" / "m.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_output_error(whole: ir.Model, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        save_model(whole, tmp_path / "m.onnx")


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 bytes: what a full disk looks like to the writer.

    It holds for the whole process, so only around the call: pytest's own output may go to a file.
    """
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_takes_no_more_is_a_storage_error_and_leaves_the_old_file(whole: ir.Model, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(StorageError, match="the disk is full"), small_files():
        save_model(whole, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
