"""Messages over gRPC are read as requests over HTTP are: typed or raw elements, deadlines, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from compiler.target import TensorSpec
from serving.grpc_front import read_message
from serving.protocol import BadRequest, Signature

SIGNATURE = Signature(
    inputs=(TensorSpec("a", "float32", ("n", 2)), TensorSpec("b", "int8", ("n",)), TensorSpec("h", "float16", (1,))),
    outputs=(TensorSpec("y", "float32", ("n",)),),
    sizes={"n": (1, 4)},
    batch="n",
)
A, B, H = np.array([[1.5, -2.0]], np.float32), np.array([-3], np.int8), np.array([0.5], np.float16)


def message(*, raw: bool = True) -> Any:
    request = messages.ModelInferRequest(model_name="m", id="one")
    for name, datatype, array in (("a", "FP32", A), ("b", "INT8", B), ("h", "FP16", H)):
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
    return request


def test_raw_tensors_are_the_arrays() -> None:
    inference = read_message(message(), SIGNATURE, left_s=None)
    for name, array in (("a", A), ("b", B), ("h", H)):
        np.testing.assert_array_equal(inference.inputs[name], array)
    assert (inference.identity, inference.size, inference.timeout_s) == ("one", 1, None)
    assert [want.name for want in inference.outputs] == ["y"]


def test_typed_elements_are_the_arrays() -> None:
    signature = Signature(SIGNATURE.inputs[:2], SIGNATURE.outputs, SIGNATURE.sizes, SIGNATURE.batch)
    request = message(raw=False)
    del request.inputs[2]
    request.inputs[0].contents.fp32_contents.extend(A.ravel().tolist())
    request.inputs[1].contents.int_contents.extend(B.tolist())
    inference = read_message(request, signature, left_s=None)
    np.testing.assert_array_equal(inference.inputs["a"], A)
    np.testing.assert_array_equal(inference.inputs["b"], B)


def test_the_deadline_of_the_call_is_the_requests_unless_it_states_one() -> None:
    request = message()
    assert read_message(request, SIGNATURE, left_s=0.25).timeout_s == pytest.approx(0.25)
    request.parameters["timeout"].int64_param = 1000
    request.parameters["priority"].uint64_param = 3
    stated = read_message(request, SIGNATURE, left_s=0.25)
    assert (stated.timeout_s, stated.priority) == (0.001, 3)


def _short(request: Any) -> None:
    request.raw_input_contents[0] = b"123"


def _one_missing(request: Any) -> None:
    del request.raw_input_contents[2]


def _both(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def _half_typed(request: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    request.inputs[1].contents.int_contents.append(1)


def _too_large(request: Any) -> None:
    del request.raw_input_contents[:]
    del request.inputs[2]
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    request.inputs[1].contents.int_contents.append(300)


def _odd_timeout(request: Any) -> None:
    request.parameters["timeout"].string_param = "soon"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_short, "binary_data_size is 3"),
        (_one_missing, "2 for 3 inputs"),
        (_both, "both contents and raw"),
        (_half_typed, "send it raw"),
        (_too_large, "INT8"),
        (_odd_timeout, "timeout"),
    ],
)
def test_what_does_not_fit_is_refused_with_words(change: Any, words: str) -> None:
    request = message()
    change(request)
    with pytest.raises(BadRequest, match=words):
        read_message(request, SIGNATURE, left_s=None)
