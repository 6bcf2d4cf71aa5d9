"""The border model is compared with the imported model for every device, executed or not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from compiler.target.testing import install_plugin
from tests.cli.conftest import Place

PLUGIN = '''
import onnx_ir as ir
from dataclasses import dataclass
from typing import Annotated
from pydantic import Field
from compiler.model.graph import FunctionPass, PassResult
from compiler.target.testing.fake import FakeTarget, Options

@dataclass(frozen=True)
class More(Options):
    """Also: a pass of its own that is wrong."""
    limit: Annotated[float, Field(description="What a pass of the target clips the output to; 0: there is none.")] = 0.0

def clip(limit):
    def run(model):
        output = model.graph.outputs[0]
        node = output.producer()
        if node.op_type == "Clip":
            return PassResult(False)
        low, high = (ir.Value(name=n, const_value=ir.tensor(v, name=n), type=output.type, shape=ir.Shape([]))
                     for n, v in (("low", -limit), ("high", limit)))
        model.graph.register_initializer(low)
        model.graph.register_initializer(high)
        inner = ir.Value(name="unclipped", type=output.type, shape=output.shape)
        clipped = ir.node("Clip", [inner, low, high], outputs=[ir.Value(name="clipped")])
        node.outputs[0].name = "unclipped"
        result = clipped.outputs[0]
        result.name, result.type, result.shape = "y", output.type, output.shape
        clipped.replace_input_with(0, node.outputs[0])
        model.graph.append(clipped)
        model.graph.outputs[0] = result
        return PassResult(True)
    return FunctionPass("clip-outputs", run)

class Clipping(FakeTarget):
    Options = More

    def passes(self, profile):
        limit = profile.target_options.get("limit", 0.0)
        return (clip(limit),) if limit else ()

TARGET = Clipping("clipping")
'''
"""Of samples inside the limit the pass is right, so that the probe, the first of them, does not undo it."""


@pytest.fixture(scope="module")
def clipping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("clipping")
    install_plugin(folder, "clipping", PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield folder


def write(place: Place, text: str, samples: object, **options: object) -> None:
    model = ir.from_onnx_text(text)
    onnx.save(ir.to_proto(model), place.root / "model.onnx")
    np.savez(place.root / "samples.npz", x=np.asarray(samples))
    place.write_fleet(
        {"one": {"profile": place.profile("one", "clipping", **options), "batch": {"min": 1, "opt": 2, "max": 2}}},
        calibration={"path": "samples.npz"},
    )


MODEL = """<ir_version: 10, opset_import: ["" : 21]>
g (float[batch,3] x) => (float[batch,3] y) { y = Tanh (x) }"""


@pytest.mark.parametrize("mood", [{"load": "unavailable"}, {"build": "defer"}, {}])
def test_border_model_that_differs_fails_a_device_executed_or_not(
    place: Place, clipping: Path, mood: dict[str, object]
) -> None:
    """An artifact that could not be executed was delivered, with exit 0, whatever its border model computed."""
    write(place, MODEL, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float32), limit=0.5, **mood)
    outcome = place.build()
    assert outcome.code == 5, outcome.err
    assert "the border model differs from the imported model by more than 'fp32' allows" in outcome.err
    assert "batch=2: output 'y': SQNR" in outcome.err
    assert not (place.dist / "one").exists()


def test_border_model_alone_is_compared_before_it_is_written(place: Place, clipping: Path) -> None:
    write(place, MODEL, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float32), limit=0.5)
    outcome = place.build("--to", "specialize")
    assert outcome.code == 5, outcome.err
    assert "the border model differs from the imported model" in outcome.err
    assert not (place.dist / "one" / "border.onnx").exists()


def test_manifest_of_an_artifact_not_executed_has_the_border_models_parity(place: Place, clipping: Path) -> None:
    write(place, MODEL, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float32), load="unavailable")
    assert place.build().code == 0
    verdict = place.manifest("one")["verdict"]
    assert (verdict["parity"]["status"], verdict["parity"]["evidence"]) == ("not executed", "none")
    assert (verdict["border"]["status"], verdict["border"]["evidence"]) == ("passed", "measured-host")
    assert [point["sizes"] for point in verdict["border"]["points"]] == ["batch=1", "batch=2"]
    shown = place.run("inspect", place.dist / "one").out
    assert "border model against the imported model: passed (measured-host, tolerance fp32)" in shown


def test_model_in_float16_is_held_to_the_tolerance_of_float16(place: Place, clipping: Path) -> None:
    """float32 arithmetic, or another order of it, cannot agree by 60 dB with results that are rounded to 11 bits."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float16[batch,3] x) => (float16[batch,3] y) { y = Tanh (x) }"""
    write(place, text, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float16))
    assert place.build().code == 0
    manifest = place.manifest("one")
    assert manifest["verdict"]["parity"]["tolerance"] == manifest["verdict"]["border"]["tolerance"] == "fp16"
    assert manifest["plan"]["decisions"]["tolerance"]["value"] == "fp16"
    assert place.run("verify", place.dist / "one").code == 0


def test_outputs_that_do_not_depend_on_the_samples_are_no_proof(place: Place, clipping: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[batch,3] x) => (float[batch,3] y, float[batch,3] z) {
        k = Constant <value = float {9.0}> ()
        m = Max (x, k) y = Sub (m, k) z = Tanh (x) }"""
    write(place, text, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float32))
    assert place.build().code == 0
    (sentence,) = place.manifest("one")["verdict"]["weak_proofs"]
    assert sentence.startswith("output 'y': every element has the same value on all samples")
    assert sentence in place.run("inspect", place.dist / "one").out


def test_made_up_integers_are_no_proof(place: Place, clipping: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (int64[batch,3] ids) => (float[batch,3] y) { y = Cast <to = 1> (ids) }"""
    onnx.save(ir.to_proto(ir.from_onnx_text(text)), place.root / "model.onnx")
    place.write_fleet({"one": place.profile("one", "clipping")})
    assert place.build().code == 0
    assert any("integers made up" in line for line in place.manifest("one")["verdict"]["weak_proofs"])


def test_equal_infinities_do_not_fail_a_build(place: Place, clipping: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[batch,3] x) => (float[batch,3] y) {
        mask = Constant <value = bool[3] {1, 0, 0}> ()
        t = Tanh (x) low = Constant <value = float {-1.0}> () zero = Constant <value = float {0.0}> ()
        i = Div (low, zero)
        y = Where (mask, t, i) }"""
    write(place, text, np.array([[0.1, 0.2, 0.3], [2, 2, 2]], np.float32))
    outcome = place.build()
    assert outcome.code == 0, outcome.err
    assert math.isfinite(place.manifest("one")["verdict"]["border"]["points"][0]["outputs"]["y"].get("sqnr_db", 0.0))
