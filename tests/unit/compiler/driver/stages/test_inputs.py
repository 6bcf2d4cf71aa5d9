"""Sizes, fixed inputs and samples of a fleet file reach the model; what messages advise works when it is obeyed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from language_models import tiny_decoder, tiny_text

from compiler.driver.stages.inputs import BuildStart, prepare, tokens_behind_caches
from compiler.errors import CompilerError, FleetError
from compiler.fleet import load_fleet
from compiler.model.frontend import describe_inputs, describe_outputs, read_model
from compiler.passes.probe import run_unoptimized


def prepared(
    folder: Path, signature: str, body: str, *, fleet: str = "", device: str = "", **data: np.ndarray
) -> BuildStart:
    """What a device's build starts from; `device` are lines below its profile."""
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}'),
        folder / "model.onnx",
    )
    if data:
        np.savez(folder / "in.npz", **data)
        fleet += "\ncalibration: {path: in.npz}"
    text = f"schema: 1\nmodel: model.onnx\n{fleet}\ndevices:\n  kiosk:\n    profile: intel-n100\n{device}\n"
    (folder / "fleet.yaml").write_text(text, encoding="utf-8")
    loaded = load_fleet(folder / "fleet.yaml")
    ready = prepare(loaded, read_model(loaded.model).model, list(loaded.devices.values()))[0]["kiosk"]
    for arrays in ready.inputs.points.values():
        run_unoptimized(ready.model, arrays)
    return ready


def shapes(ready: BuildStart) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.shape for spec in describe_inputs(ready.model)}


@pytest.mark.parametrize("name", ["N", "batch", "rows", "batch_size", "None", "x.0"])
def test_the_first_dimension_is_sized_by_its_name(tmp_path: Path, name: str) -> None:
    symbol = "?" if name == "x.0" else name
    signature = f"(float[{symbol},M] x) => (float[A,B] y)"
    ready = prepared(tmp_path, signature, "y = Relu(x)", fleet=f'dims: {{"{name}": 4, M: 8}}')
    assert shapes(ready) == {"x": (4, 8)}


def test_a_range_of_the_first_dimension_under_its_name_is_verified_at_its_sizes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    for arrays in ({}, {"x": data}):
        ready = prepared(
            tmp_path,
            "(float[N,8] x) => (float[N,8] y)",
            "y = Relu(x)",
            fleet="dims: {N: {min: 1, opt: 4, max: 16}}",
            **arrays,
        )
        assert {label: points["x"].shape for label, points in ready.inputs.points.items()} == {
            "N=1": (1, 8),
            "N=4": (4, 8),
            "N=16": (16, 8),
        }


def test_where_several_lead_each_gets_its_own_size(tmp_path: Path) -> None:
    signature, body = "(float[N,4] x, float[M,4] z) => (float[A,B] y)", "t = Transpose(x) y = MatMul(z, t)"
    ready = prepared(tmp_path, signature, body, fleet="dims: {N: 3, M: 5}")
    assert shapes(ready) == {"x": (3, 4), "z": (5, 4)}
    ready = prepared(tmp_path, signature, body, fleet="batch: 2\ndims: {M: 5}")
    assert shapes(ready) == {"x": (2, 4), "z": (5, 4)}


def test_where_several_lead_the_samples_tell_the_size_of_a_table(tmp_path: Path) -> None:
    signature, body = "(float[N,4] x, float[M,4] z) => (float[A,B] y)", "t = Transpose(x) y = MatMul(z, t)"
    x, z = (np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32) for rows in (20, 5))
    ready = prepared(tmp_path, signature, body, fleet="batch: 3", x=x, z=z)
    assert shapes(ready) == {"x": (3, 4), "z": (5, 4)}
    np.testing.assert_array_equal(ready.inputs.probe["x"], x[:3])
    np.testing.assert_array_equal(ready.inputs.probe["z"], z)


def test_a_batch_beside_a_size_for_the_same_dimension_is_refused_with_what_to_do(tmp_path: Path) -> None:
    signature = "(float[N,4] x) => (float[A,B] y)"
    with pytest.raises(FleetError, match=r"has a size of its own: 'N'[\s\S]*Leave `batch` out"):
        prepared(tmp_path, signature, "y = Relu(x)", fleet="batch: 2\ndims: {N: 3}")
    assert shapes(prepared(tmp_path, signature, "y = Relu(x)", fleet="dims: {N: 3}")) == {"x": (3, 4)}


@pytest.mark.parametrize(
    "inputs",
    [
        "float[N,3,H,W] x",
        "float[?,3,?,?] x",
        "float[N,S] x, float[S] z",
        "float[N,width_in_pixels] x",
        "float[4,T] x",
    ],
)
def test_the_snippet_of_a_message_is_yaml_that_works(tmp_path: Path, inputs: str) -> None:
    signature, body = f"({inputs}) => (float[A,B] y)", "y = Flatten(x)"
    with pytest.raises(CompilerError, match="no size") as caught:
        prepared(tmp_path, signature, body)
    snippet = caught.value.remedy.partition("under the device:\n")[2]
    assert snippet
    ready = prepared(tmp_path, signature, body, device=snippet)
    assert all(isinstance(size, int) for shape in shapes(ready).values() for size in shape)
    ranged = re.sub(r": 1$", ": {min: 1, opt: 8, max: 32}", snippet, flags=re.M)
    assert any(
        isinstance(size, str)
        for shape in shapes(prepared(tmp_path, signature, body, device=ranged)).values()
        for size in shape
    )


@pytest.mark.parametrize(("batch", "advice"), [("4", "8"), ("{min: 1, opt: 2, max: 3}", "8")])
def test_the_batch_that_a_message_advises_works(tmp_path: Path, batch: str, advice: str) -> None:
    signature = "(float[8,3] x) => (float[8,3] y)"
    with pytest.raises(FleetError) as caught:
        prepared(tmp_path, signature, "y = Relu(x)", fleet=f"batch: {batch}")
    (line,) = re.findall(r"`(batch: .*?)`", caught.value.remedy)
    assert line == f"batch: {advice}"
    prepared(tmp_path, signature, "y = Relu(x)", fleet=line)


@pytest.mark.parametrize(
    ("kind", "value", "array"),
    [
        ("int64", "16000", 16000),
        ("int64[1]", "16000", [16000]),
        ("float[2,3]", "0.5", [[0.5] * 3] * 2),
        ("float[3]", "[1, 2.5, 3]", [1, 2.5, 3]),
        ("int32[2,2]", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("bool", "true", True),
        ("float[K]", "[1, 2]", [1, 2]),
        ("float", "3", 3.0),
    ],
)
def test_an_input_is_fixed(tmp_path: Path, kind: str, value: str, array: object) -> None:
    signature = f"(float[N,4] x, {kind} sr) => (float[N,4] y, {kind} z)"
    for place in ({"fleet": f"inputs: {{sr: {value}}}"}, {"device": f"    inputs: {{sr: {value}}}"}):
        ready = prepared(tmp_path, signature, "y = Relu(x) z = Identity(sr)", **place)
        assert list(shapes(ready)) == ["x"] and len(describe_outputs(ready.model)) == 2
        outputs = run_unoptimized(ready.model, ready.inputs.probe)
        np.testing.assert_array_equal(outputs["z"], np.array(array))
        assert any("input 'sr' is fixed at" in note for note in ready.notes)


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        ("{srr: 1}", "no input 'srr' to fix[\\s\\S]*Did you mean 'sr'"),
        ("{sr: 1.5}", "cannot be fixed at 1.5: its type is INT64"),
        ("{sr: [1, 2]}", "its shape is"),
        ("{sr: 1, x: 0}", "every input is fixed"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(tmp_path: Path, fixed: str, said: str) -> None:
    with pytest.raises(FleetError, match=said):
        prepared(
            tmp_path,
            "(float[N,4] x, int64 sr) => (float[N,4] y, int64 z)",
            "y = Relu(x) z = Identity(sr)",
            fleet=f"inputs: {fixed}",
        )


def test_devices_with_other_fixed_inputs_start_from_other_models(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x, float s) => (float[N,4] y) { y = Mul(x, s) }'
        ),
        tmp_path / "model.onnx",
    )
    (tmp_path / "fleet.yaml").write_text(
        "schema: 1\nmodel: model.onnx\ninputs: {s: 2}\ndevices:\n  a: {profile: intel-n100}\n"
        "  b: {profile: intel-n100}\n  c: {profile: intel-n100, inputs: {s: 3}}\n"
    )
    fleet = load_fleet(tmp_path / "fleet.yaml")
    ready, failed = prepare(fleet, read_model(fleet.model).model, list(fleet.devices.values()))
    assert failed == {}
    assert ready["a"] is ready["b"] and ready["a"].digest != ready["c"].digest


def test_random_inputs_that_do_not_run_are_drawn_more_narrowly(tmp_path: Path) -> None:
    """An index that is computed reaches beyond the table with integers up to 100; 0 and 1 are valid."""
    ready = prepared(
        tmp_path,
        "(int64[N] ids) => (float[N,2] y) <float[3,2] t = {1,2,3,4,5,6}, int64 one = {1}>",
        "i = Mul(ids, one) y = Gather(t, i)",
    )
    assert ready.inputs.origin == "random, seed 0" and ready.inputs.is_random


DECODER = "s = Concat <axis = 1> (past, x) m = Cast <to = 1> (mask) w = Mul (s, m) y = ReduceSum <keepdims = 0> (w, a)"


def decoder(total: str) -> tuple[str, str]:
    """A model whose mask is as long as what was read before and what is read now, as decoders of text have it."""
    signature = f'(float[1,sequence] x, float[1,past] past, int64[1,"{total}"] mask) => (float[N] y)'
    return signature.replace('"', ""), "a = Constant <value = int64[1] {1}> () " + DECODER


RANGES = "past: {min: 0, opt: 6, max: 12}, sequence: {min: 1, opt: 2, max: 4}"


@pytest.mark.parametrize("named_by_the_model", [True, False])
def test_a_size_that_is_a_sum_of_others_is_drawn_with_them(tmp_path: Path, named_by_the_model: bool) -> None:
    """Each drawn on its own, a mask of 1 would meet a past of 0 and a sequence of 4: the model does not run."""
    signature, body = decoder("total")
    fleet = f"dims: {{{RANGES}, total: past + sequence}}"
    ready = prepared(tmp_path, signature, body, fleet=fleet)
    if named_by_the_model:
        proto = onnx.load(tmp_path / "model.onnx")
        proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + sequence"
        onnx.save(proto, tmp_path / "model.onnx")
        text = (tmp_path / "fleet.yaml").read_text(encoding="utf-8")
        (tmp_path / "fleet.yaml").write_text(text.replace(", total: past + sequence", ""), encoding="utf-8")
        loaded = load_fleet(tmp_path / "fleet.yaml")
        ready = prepare(loaded, read_model(loaded.model).model, list(loaded.devices.values()))[0]["kiosk"]
        assert {name: (size.min, size.opt, size.max) for name, size in ready.sums.items()} == {
            "past + sequence": (1, 8, 16)
        }
    sizes = [{name: array.shape[1] for name, array in point.items()} for point in ready.inputs.points.values()]
    assert sizes == [
        {"x": 1, "past": 0, "mask": 1},
        {"x": 2, "past": 6, "mask": 8},
        {"x": 4, "past": 12, "mask": 16},
    ]


def test_a_smaller_cache_is_part_of_the_largest_one_which_alone_is_computed() -> None:
    model, ids = tiny_decoder(), tiny_text(300)
    sizes = [
        {"batch": rows, "sequence": length, "past": past} for rows, length, past in ((1, 1, 0), (1, 3, 5), (2, 4, 9))
    ]
    together = tokens_behind_caches(model, ids, sizes)
    for each, size in zip(together, sizes[:2], strict=False):
        (expected,) = tokens_behind_caches(model, ids, [size])
        assert each.keys() == expected.keys()
        for name, array in expected.items():
            assert each[name].shape == array.shape
            np.testing.assert_allclose(each[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
