"""The protocol: what is valid is read bit for bit, and nothing that a client sends gives anything but words for it."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.target import TensorSpec
from serving.protocol import BadRequest, Inference, Signature, Wanted, read_body, read_inference, write_answer

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch", 2)), TensorSpec("mask", "bool", ("batch",))),
    outputs=(TensorSpec("y", "float32", ("batch", 2)), TensorSpec("n", "int64", ("batch",))),
    sizes={"batch": (1, 4)},
    batch="batch",
)
EXAMPLES = 10_000 if os.environ.get("FLEETC_SLOW") else 500


def request(**changes: Any) -> dict[str, Any]:
    x = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2.5], [3, 4]]}
    mask = {"name": "mask", "shape": [2], "datatype": "BOOL", "data": [True, False]}
    return {"inputs": [x | changes.pop("x", {}), mask | changes.pop("mask", {})], **changes}


def read(value: object) -> Inference:
    return read_inference(json.dumps(value).encode(), None, SIGNATURE)


def test_json_and_binary_give_the_same_numbers() -> None:
    plain = read(request(id="a", parameters={"timeout": 20_000, "priority": 2, "binary_data_output": True}))
    assert (plain.size, plain.identity, plain.timeout_s, plain.priority) == (2, "a", 0.02, 2)
    assert plain.outputs == (Wanted("y", True), Wanted("n", True))
    tail = plain.inputs["x"].tobytes() + plain.inputs["mask"].tobytes()
    head = request()
    for tensor, size in zip(head["inputs"], (16, 2), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
    text = json.dumps(head).encode()
    binary = read_inference(text + tail, str(len(text)), SIGNATURE)
    for name, array in plain.inputs.items():
        np.testing.assert_array_equal(binary.inputs[name], array)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": {"name": "z"}}, "unknown"),
        ({"x": {"datatype": "FP16"}}, "datatype"),
        ({"x": {"shape": [2, 3]}}, "shape"),
        ({"x": {"shape": [3, 2]}}, "numbers, shape"),
        ({"x": {"shape": [-1, 2]}}, "shape"),
        ({"x": {"data": [1, 2, 3, "4"]}}, "data"),
        ({"x": {"data": [1, 2, 3, None]}}, "data"),
        ({"x": {"data": [1, 2, 3, 1e300]}}, "numbers that FP32 has not"),
        ({"x": {"data": [[1], [2, 3]]}}, "data"),
        ({"mask": {"data": [1, 0]}}, "BOOL"),
        ({"mask": {"shape": [1], "data": [True]}}, "dimension 'batch'"),
        ({"parameters": {"sequence_id": 3}}, "sequence_id"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"priority": "high"}}, "priority"),
        ({"outputs": [{"name": "z"}]}, "outputs"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"x": {"parameters": {"binary_data_size": 16}}}, "both data"),
        ({"inputs": None}, "inputs"),
        ({"inputs": []}, "missing"),
        ({"id": 7}, "id"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        read(request(**changes))
    assert 400 <= caught.value.status < 500


def test_integers_are_not_rounded_or_wrapped() -> None:
    signature = Signature((TensorSpec("i", "int8", (2,)),), (TensorSpec("o", "int8", (2,)),))
    for data in ([1.5, 2], [128, 0], [2**70, 0], [True, False]):
        body = json.dumps({"inputs": [{"name": "i", "shape": [2], "datatype": "INT8", "data": data}]}).encode()
        with pytest.raises(BadRequest):
            read_inference(body, None, signature)


def test_nan_and_bytes_that_are_no_boolean_are_refused() -> None:
    head = request()
    for tensor, size in zip(head["inputs"], (16, 2), strict=True):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
    text = json.dumps(head).encode()
    ones, nan = np.ones(4, np.float32).tobytes(), np.full(4, np.nan, np.float32).tobytes()
    for tail, words in ((nan + b"\1\0", "NaN"), (ones + b"\2\0", "neither 0 nor 1"), (ones, "announced")):
        with pytest.raises(BadRequest, match=words):
            read_inference(text + tail, str(len(text)), SIGNATURE)
    with pytest.raises(BadRequest, match="belong to no input"):
        read_inference(text + ones + b"\1\0more", str(len(text)), SIGNATURE)


def test_a_body_that_unpacks_to_too_much_is_not_unpacked() -> None:
    import zlib

    bomb = zlib.compress(b"0" * 10_000_000)
    with pytest.raises(BadRequest, match="unpacks to more") as caught:
        read_body(bomb, encoding="deflate", limit=1000)
    assert caught.value.status == 413


def test_an_answer_is_read_back() -> None:
    outputs = {"y": np.array([[1.0, np.inf]], np.float32), "n": np.array([7], np.int64)}
    parts, headers = write_answer({"model_name": "m"}, outputs, [Wanted("y", True), Wanted("n", False)])
    head = json.loads(parts[0])
    assert int(headers["Inference-Header-Content-Length"]) == len(parts[0])
    assert parts[1] == outputs["y"].tobytes()
    assert [tensor.get("data") for tensor in head["outputs"]] == [None, [7]]
    plain = json.loads(write_answer({}, outputs, [Wanted("y", False)])[0][0])
    assert plain["outputs"][0]["data"] == [1.0, None]  # JSON has no infinity


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])


@st.composite
def malformed(draw: st.DrawFn) -> bytes:
    """A valid request with a part of it replaced by anything, or with bytes cut out or changed."""
    value = request()
    where = draw(st.sampled_from(["tensor", "parameters", "outputs", "inputs", "whole"]))
    anything = draw(VALUES)
    if where == "tensor":
        value["inputs"][draw(st.integers(0, 1))][draw(KEYS)] = anything
    elif where == "whole":
        value = anything
    else:
        value[where] = anything
    body = bytearray(json.dumps(value).encode())
    for _ in range(draw(st.integers(0, 3))):
        if body:
            body[draw(st.integers(0, len(body) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))]) if draw(st.booleans()) else bytes(body)


@settings(max_examples=EXAMPLES, deadline=None)
@given(body=malformed(), length=st.none() | st.text(max_size=6) | st.integers(-5, 400).map(str))
def test_whatever_is_sent_gives_a_request_or_words(body: bytes, length: str | None) -> None:
    try:
        read_inference(body, length, SIGNATURE)
    except BadRequest as error:
        assert error.what
        assert 400 <= error.status < 500
