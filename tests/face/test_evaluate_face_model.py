"""The verification measures, on embeddings whose answers are known."""

import json

import onnx
import pytest
from evaluate_face_model import evaluate, main

from compiler.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'fleetc[face]'")


def add_photographs(folder, person, count):
    (folder / person).mkdir()
    for number in range(count):
        grey = 40 * number + 10 * len(person)
        Image.new("L", (100, 100), grey).save(folder / person / f"{number}.png")


def save_averaging_model(path):
    text = """<ir_version: 8, opset_import: ["": 17]>
    averages (float[batch, 3, 150, 150] image) => (float[batch, 3] embedding) {
        embedding = ReduceMean <axes = [2, 3], keepdims = 0> (image)
    }"""
    onnx.save(onnx.parser.parse_model(text), path)


def test_folder_without_two_photographs_of_two_people_is_refused(tmp_path):
    add_photographs(tmp_path, "Ada", 2)
    save_averaging_model(tmp_path / "model.onnx")
    with pytest.raises(DataError, match="only one person"):
        evaluate(tmp_path / "model.onnx", tmp_path)


def test_command_prints_one_json_document(tmp_path, capsys):
    for person in ("Ada", "Bo"):
        add_photographs(tmp_path, person, 2)
    save_averaging_model(tmp_path / "model.onnx")
    assert main([str(tmp_path / "model.onnx"), "--faces", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["faces"], document["people"], document["far"]) == (4, 2, 1e-3)


@pytest.mark.parametrize(
    ("model", "photograph", "code"), [(b"no model", None, 3), (None, b"no picture", 2)], ids=["model", "photograph"]
)
def test_damaged_file_is_named_with_its_exit_code(tmp_path, capsys, model, photograph, code):
    for person in ("Ada", "Bo"):
        add_photographs(tmp_path, person, 2)
    save_averaging_model(tmp_path / "model.onnx")
    if model:
        (tmp_path / "model.onnx").write_bytes(model)
    if photograph:
        (tmp_path / "Bo/1.png").write_bytes(photograph)
    assert main([str(tmp_path / "model.onnx"), "--faces", str(tmp_path)]) == code
    assert ("model.onnx" if model else "1.png") in capsys.readouterr().err
