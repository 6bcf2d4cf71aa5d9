"""The verification measures, on embeddings whose answers are known."""

import json

import numpy as np
import onnx
import pytest
from evaluate_face_model import balanced_accuracy, find_faces, main, score, true_accept_rate

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


def test_people_far_apart_are_told_apart_without_error():
    scores = score(np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3]], np.float32), np.array(["a", "a", "b", "b"]))
    assert (scores.faces, scores.people) == (4, 2)
    assert (scores.tar, scores.rank1, scores.balanced_accuracy) == (1, 1, 1)


def test_a_photograph_nearer_to_another_person_lowers_rank_1():
    scores = score(np.array([[1, 0], [0, 1], [0.1, 1], [0.2, 1]], np.float32), np.array(["a", "a", "b", "b"]))
    assert scores.rank1 == 0.5


def test_accept_rate_lets_no_more_impostors_pass_than_asked():
    impostor, genuine = np.arange(1000.0), np.array([998.5, 997.5, 999.5, 0.0])
    assert true_accept_rate(genuine, impostor, far=1e-3) == 0.5
    assert true_accept_rate(genuine, impostor, far=0) == 0.25


def test_balanced_accuracy_weighs_both_kinds_of_pairs_alike():
    assert balanced_accuracy(np.array([2.0, 4.0]), np.array([1.0, 1.0, 1.0, 3.0])) == pytest.approx((1 + 0.75) / 2)


def test_folder_without_two_photographs_of_two_people_is_refused(tmp_path):
    add_photographs(tmp_path, "Ada", 2)
    add_photographs(tmp_path, "Bo", 1)
    with pytest.raises(DataError, match="two persons"):
        find_faces(tmp_path)


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
