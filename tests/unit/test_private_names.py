"""Every private name of a library that fleetc uses: why, which pin keeps it, and that it still does what is needed.

When a pin is raised and a test here fails, the name moved or changed: the file named in `PRIVATE` is what to repair.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compiler.passes.rules import RulePass

ROOT = Path(__file__).parents[2]
OURS = ("compiler", "targets", "profiles", "serving", "rollout")


@dataclass(frozen=True)
class Private:
    """One private name.

    Args:
        package: The distribution whose pin keeps it.
        user: The file that uses it.
        reason: Why no public name does.
    """

    package: str
    user: str
    reason: str


PRIVATE = {
    "onnxscript.rewriter._basics.MatchFailureError": Private(
        "onnxscript",
        "compiler/passes/matching.py",
        "helpers of checks raise the reason; a failed MatchResult, the public way, would go through every caller",
    ),
    "onnxscript.rewriter._pattern_ir.NodeOutputPattern": Private(
        "onnxscript", "compiler/passes/rules.py", "tells an operator of a pattern from its variables; not exported"
    ),
    "onnxscript.rewriter._pattern_ir.NodePattern": Private(
        "onnxscript", "compiler/passes/rules.py", "the type of what makes such an output; not exported"
    ),
    "onnxscript.rewriter._pattern_ir.StringConstantPattern": Private(
        "onnxscript", "compiler/passes/rules.py", "an operator's name, where it is one name; not exported"
    ),
    "._target_pattern": Private(
        "onnxscript",
        "compiler/passes/rules.py",
        "which operators a rule needs, so that rules that cannot match are not tried at each node",
    ),
    "openvino._offline_transformations.apply_moc_transformations": Private(
        "openvino",
        "targets/intel_openvino/toolchain.py",
        "the transformations that `openvino.convert_model` runs on a file, here on a network that was renamed first",
    ),
    "._check_for_unsupported_ops": Private(
        "apache-tvm",
        "targets/arm_tvm/graph/lower.py",
        "the importer would refuse the nodes that stand for our own kernels",
    ),
    "._convert_operator": Private(
        "apache-tvm",
        "targets/arm_tvm/graph/lower.py",
        "our own kernels and conversions, and the name of a node that fails",
    ),
    "._vmcodegen": Private(
        "apache-tvm",
        "targets/arm_tvm/graph/kernel_objects.py",
        "`relax.build` compiles all kernels as one module; here each is an object file that is kept",
    ),
    "._vmlink": Private(
        "apache-tvm",
        "targets/arm_tvm/graph/kernel_objects.py",
        "the second half of `relax.build`, for code whose kernels are linked later",
    ),
}
DOCUMENTED = {"._exit"}
"""Names with an underscore that their library documents: os._exit."""


def _uses(file: Path) -> Iterator[str]:
    """Private names of libraries in a file: imported modules and names, and attributes it does not define."""
    tree = ast.parse(file.read_text("utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_private_path(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] not in OURS:
            paths = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (path for path in paths if _is_private_path(path))
        elif isinstance(node, ast.Attribute) and _is_private_path(node.attr) and _is_foreign(node, own):
            yield f".{node.attr}"


def _is_foreign(node: ast.Attribute, own: set[str]) -> bool:
    """Whether an attribute is neither of `self` nor defined in the file; what `super()` has is always foreign."""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super":
        return True
    return node.attr not in own and ast.unparse(node.value) not in ("self", "cls")


def _is_private_path(path: str) -> bool:
    return any(re.match(r"_[a-zA-Z]", part) for part in path.split("."))


def test_the_list_is_complete_and_names_the_files() -> None:
    files = [file for folder in OURS for file in (ROOT / folder).rglob("*.py")]
    used = {(name, file.relative_to(ROOT).as_posix()) for file in files for name in _uses(file)}
    assert {use for use in used if use[0] not in DOCUMENTED} == {(name, entry.user) for name, entry in PRIVATE.items()}


@pytest.mark.parametrize("package", sorted({entry.package for entry in PRIVATE.values()}))
def test_a_package_with_a_private_name_in_use_is_pinned(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    assert [one for one in requirements if one.startswith(f"{package}==")]


def _rule(check: Any = None) -> Any:
    from onnxscript.rewriter import RewriteRule

    return RewriteRule(lambda op, x: op.Relu(op.Neg(x)), lambda op, x: op.Identity(x), check)


def _model() -> ir.Model:
    return ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { n = Neg(x)  y = Relu(n) }'
    )


def test_match_failure_error_raised_by_a_check_is_a_near_miss_with_its_reason() -> None:
    from onnxscript.rewriter._basics import MatchFailureError

    def check(context: Any, x: Any) -> None:
        raise MatchFailureError("x is too short")

    result = RulePass("refuse", [_rule(check)])(_model())
    assert not result.modified
    assert any("x is too short" in note for note in result.notes)


def test_target_pattern_lists_outputs_that_lead_to_the_operators() -> None:
    from onnxscript.rewriter._pattern_ir import NodeOutputPattern

    (output,) = _rule()._target_pattern.outputs
    assert isinstance(output, NodeOutputPattern)


def test_node_output_pattern_and_node_pattern_lead_through_the_inputs_to_a_variable() -> None:
    from onnxscript.rewriter._pattern_ir import NodeOutputPattern, NodePattern

    relu = _rule()._target_pattern.outputs[0].producer()
    assert isinstance(relu, NodePattern)
    neg = relu.inputs[0].producer()
    assert isinstance(neg, NodePattern)
    assert not isinstance(neg.inputs[0], NodeOutputPattern)


def test_string_constant_pattern_holds_domain_and_operator() -> None:
    from onnxscript.rewriter._pattern_ir import StringConstantPattern

    relu = _rule()._target_pattern.outputs[0].producer()
    assert isinstance(relu.domain, StringConstantPattern)
    assert isinstance(relu.op, StringConstantPattern)
    assert (relu.domain.value(), relu.op.value()) == ("", "Relu")


@pytest.mark.needs_openvino
def test_apply_moc_transformations_takes_a_network_and_keeps_what_it_computes() -> None:
    ov = pytest.importorskip("openvino")
    from openvino._offline_transformations import apply_moc_transformations

    network = ov.Core().read_model(ir.to_proto(_model()).SerializeToString(), b"")
    apply_moc_transformations(network, cf=False, smart_reshape=False)
    result = ov.Core().compile_model(network, "CPU")([np.float32([1, -2])])[0]
    assert result.tolist() == [0.0, 2.0]


@pytest.mark.needs_tvm
def test_check_for_unsupported_ops_is_asked_once_and_convert_operator_for_each_node() -> None:
    pytest.importorskip("tvm")
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    asked: list[str] = []

    class Importer(ONNXGraphImporter):  # type: ignore[misc]  # TVM is untyped
        def _check_for_unsupported_ops(self, graph: Any) -> None:
            asked.append(f"check {len(graph.node)}")
            super()._check_for_unsupported_ops(graph)

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            asked.append(f"{op_name} {attrs['tvm_custom']['name']} {opset}")
            return self.bb.normalize(super()._convert_operator(op_name, inputs, attrs, opset))

    model = _model()
    for node in model.graph:
        node.name = f"my_{node.op_type}"
    Importer(shape_dict={}, dtype_dict="float32").from_onnx(ir.to_proto(model).graph, 18)
    assert asked == ["check 2", "Neg my_Neg 18", "Relu my_Relu 18"]


@pytest.mark.needs_tvm
def test_vmcodegen_and_vmlink_are_the_two_halves_of_a_build() -> None:
    tvm = pytest.importorskip("tvm")
    from tvm import relax, tirx, topi

    block = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2,), "float32"))
    with block.function("main", [x]):
        block.emit_func_output(block.emit_te(topi.nn.relu, x))
    target = tvm.target.Target("llvm")
    with target:
        module = relax.get_default_pipeline(target)(block.get())
    kernels = {var: part for var, part in module.functions_items() if isinstance(part, tirx.PrimFunc)}
    builder = relax.ExecBuilder()
    relax.vm_build._vmcodegen(builder, module)
    executable = relax.vm_build._vmlink(builder, target, tvm.IRModule(kernels))
    machine = relax.VirtualMachine(executable.jit(), tvm.cpu())
    assert machine["main"](tvm.runtime.tensor(np.float32([1, -2]))).numpy().tolist() == [1.0, 0.0]
