"""Damaged ONNX files: whatever the bytes, reading ends soon, in a model or in an error that has a name."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.errors import CompilerError
from compiler.fleet import Range
from compiler.model.frontend import bind_shapes, free_dims, read_model

LIMIT_S = 30.0

SEEDS = (
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,3,8,8] x) => (float[N,K] y) <float[2,3,1,1] w = {1,2,3,4,5,6}, int64[2] s = {0, -1}>
    { a = Conv <kernel_shape = [1, 1]> (x, w) b = Relu (a) y = Reshape (b, s) }""",
    """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    g (float[N,4] x, bool c) => (float[N,4] y)
    { h = local.twice (x)
      y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg (h) },
                  else_branch = e () => (float[N,4] q) { q = Einsum <equation = "ij->ij"> (h) }> }
    <domain: "local", opset_import: ["" : 21]> twice (q) => (r) { r = Add (q, q) }""",
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[20,10,5] x, int64[1] starts, int64[1] ends) => (float[A,B,C] y, int64[3] z)
    { t = Slice (x, starts, ends) z = Shape (t) d = Constant <value = float[1] {2.0}> () y = Mul (t, d) }""",
)
WHOLE = tuple(onnx.parser.parse_model(text).SerializeToString() for text in SEEDS)
INTEGERS = (0, 1, -1, 2, 7, 127, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))

FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """onnx_ir logs what it finds odd; here that is everything."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def survives(data: bytes, folder: Path) -> None:
    """Fails unless the bytes are a model, or a named error of exit code 2 to 4, in time."""
    path = folder / "fuzzed.onnx"
    path.write_bytes(data)
    started = time.monotonic()
    try:
        model = read_model(path).model
        bind_shapes(model, {name: Range(1, 2, 2) for name in free_dims(model)})
    except CompilerError as error:
        assert error.exit_code in (2, 3, 4), error
        assert str(error)
    assert time.monotonic() - started < LIMIT_S


@FUZZ
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits(tmp_path: Path, whole: bytes, flips: list[tuple[int, int]]) -> None:
    data = bytearray(whole)
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    survives(bytes(data), tmp_path)


@FUZZ
@given(st.sampled_from(WHOLE), st.integers(0, 2**16))
def test_truncation(tmp_path: Path, whole: bytes, length: int) -> None:
    survives(whole[: length % len(whole)], tmp_path)


@FUZZ
@given(st.sampled_from(WHOLE), st.sampled_from(WHOLE), *[st.integers(0, 2**16)] * 3, st.integers(0, 60))
def test_splices(tmp_path: Path, one: bytes, other: bytes, cut: int, skip: int, start: int, length: int) -> None:
    cut, start = cut % len(one), start % len(other)
    survives(one[:cut] + other[start : start + length] + one[cut + skip % 60 :], tmp_path)


@FUZZ
@given(st.binary(max_size=200))
def test_noise(tmp_path: Path, data: bytes) -> None:
    survives(data, tmp_path)


@FUZZ
@given(st.sampled_from(WHOLE), st.integers(0, 2**32))
def test_fields_with_other_values(tmp_path: Path, whole: bytes, seed: int) -> None:
    proto, chance = onnx.ModelProto.FromString(whole), random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        fields = list(_fields(proto))
        chance.choice(fields)(chance)
    survives(proto.SerializePartialToString(), tmp_path)


def _fields(message: Message) -> Iterator[Callable[[random.Random], None]]:
    """One change for every field that is set, here and inside."""
    for field, value in message.ListFields():
        is_message = field.type == FieldDescriptor.TYPE_MESSAGE
        for inner in (value if field.is_repeated else [value]) if is_message else []:
            yield from _fields(inner)
        if field.is_repeated:
            yield lambda chance, value=value: _shorten_or_repeat(value, chance)
        elif not is_message:
            yield lambda chance, field=field, value=value: setattr(message, field.name, _other(field, value, chance))
        if field.is_repeated and not is_message:
            yield lambda chance, field=field, value=value: _replace(field, value, chance)


def _shorten_or_repeat(values: list[object], chance: random.Random) -> None:
    if values and chance.random() < 0.5:
        del values[chance.randrange(len(values))]
    elif values:
        values.append(values[chance.randrange(len(values))])


def _replace(field: FieldDescriptor, values: list[object], chance: random.Random) -> None:
    if values:
        index = chance.randrange(len(values))
        values[index] = _other(field, values[index], chance)


def _other(field: FieldDescriptor, old: object, chance: random.Random) -> object:
    """Another value that the field can hold."""
    if isinstance(old, str):
        return chance.choice(["", "x", "h", "y", f"{old}x", "Constant", "  ", old[:-1]])
    if isinstance(old, bytes):
        return chance.choice([b"", old[:-1], old + b"\xff", b"  ", b"\xff" * len(old)])
    if isinstance(old, float):
        return chance.choice([0.0, -1.0, float("nan"), float("inf"), 1e38])
    if field.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice([value.number for value in field.enum_type.values])
    limit = 2**31 if field.type == FieldDescriptor.TYPE_INT32 else 2**63
    return chance.choice([value for value in INTEGERS if -limit <= value < limit])
