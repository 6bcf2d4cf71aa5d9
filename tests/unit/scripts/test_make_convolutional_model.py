"""The made-up networks are what they claim: repeatable, normalized, and of the published sizes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from make_convolutional_model import make_images, make_network


@pytest.fixture(scope="module")
def mobilenet() -> bytes:
    return ir.to_proto(make_network("mobilenet")).SerializeToString(deterministic=True)


def test_same_seed_gives_the_same_model(mobilenet):
    assert ir.to_proto(make_network("mobilenet")).SerializeToString(deterministic=True) == mobilenet


def test_mobilenet_has_the_published_number_of_weights(mobilenet):
    weights = ir.from_proto(onnx.load_model_from_string(mobilenet)).graph.initializers.values()
    learned = [w.const_value.size for w in weights if w.name.endswith((".weight", ".bias", ".scale", ".shift"))]
    assert sum(learned) == 3_504_872


def test_different_pictures_give_different_answers_of_ordinary_size(mobilenet):
    session = onnxruntime.InferenceSession(mobilenet, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": make_images(2, seed=5)})
    assert logits.shape == (2, 1000)
    assert 0.1 < logits.std() < 10
    assert np.abs(logits[0] - logits[1]).mean() > 0.01


def test_pictures_fill_their_range():
    pictures = make_images(3, seed=1, side=150)
    assert pictures.shape == (3, 3, 150, 150) and pictures.dtype == np.float32
    assert (pictures.min(axis=(1, 2, 3)) == 0).all() and (pictures.max(axis=(1, 2, 3)) == 1).all()
