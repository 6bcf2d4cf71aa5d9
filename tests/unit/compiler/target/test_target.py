from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import onnx.parser
import onnx_ir as ir
import pytest

import compiler
from compiler.errors import TargetNotFound, TargetUnavailable, UnsupportedModel
from compiler.target import find_target, installed_version, list_targets
from compiler.target.capability import Capability, OpRule, PrecisionRule, find_unsupported, refuse_unsupported
from compiler.target.target import HasAlternatives, missing_packages
from compiler.target.testing import FakeTarget, install_plugin, text_case

_GOOD = "from compiler.target.testing import FakeTarget\nTARGET = FakeTarget('acme')\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on `sys.path` into which plugins are installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_shipped_targets_are_listed_without_loading_any(site: Path) -> None:
    assert {"reference", "openvino", "tvm", "tensorrt"} <= set(list_targets())


def test_plugin_is_found_by_its_name(site: Path) -> None:
    install_plugin(site, "acme", _GOOD)
    assert find_target("acme").name == "acme"


def test_only_the_plugin_asked_for_is_imported(site: Path) -> None:
    install_plugin(site, "broken_one", "raise RuntimeError('imported')")
    assert find_target("reference").name == "reference"
    assert "broken_one" in list_targets()


def test_two_packages_of_one_name_are_both_named(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    install_plugin(site, "acme", _GOOD)
    (site / "fleetc_acme-1.0.dist-info" / "entry_points.txt").write_text(
        "[fleetc.targets]\ntwice = fleetc_acme:TARGET\n"
    )
    install_plugin(site, "other", _GOOD)
    (site / "fleetc_other-1.0.dist-info" / "entry_points.txt").write_text(
        "[fleetc.targets]\ntwice = fleetc_other:TARGET\n"
    )
    with pytest.raises(TargetUnavailable, match=r"'twice': fleetc-acme 1\.0 and fleetc-other 1\.0") as raised:
        find_target("twice")
    assert "Uninstall one" in raised.value.remedy


def test_plugin_that_raises_on_import_is_one_message_with_its_package(site: Path) -> None:
    install_plugin(site, "sick", "raise OSError('libnpu.so: cannot open')")
    with pytest.raises(TargetUnavailable, match=r"fleetc-sick 1\.0.*OSError: libnpu\.so") as raised:
        find_target("sick", where="board.yaml:3 target")
    assert raised.value.where == "board.yaml:3 target"
    assert isinstance(raised.value.__cause__, OSError)


def test_plugin_whose_attribute_is_missing_is_one_message(site: Path) -> None:
    install_plugin(site, "hollow", "", attribute="NOTHING")
    with pytest.raises(TargetUnavailable, match="AttributeError"):
        find_target("hollow")


def test_plugin_of_another_api_version_is_refused_with_both_versions(site: Path) -> None:
    install_plugin(site, "future", _GOOD + "TARGET.api_version = 99\n")
    with pytest.raises(TargetUnavailable, match="speaks plugin API 99, this fleetc speaks 1"):
        find_target("future")


def test_object_that_is_no_target_is_refused_with_what_it_lacks(site: Path) -> None:
    install_plugin(site, "partial", "class T:\n    name = 'partial'\n    api_version = 1\n\nTARGET = T()\n")
    with pytest.raises(TargetUnavailable, match="lacks Options, toolchain, check, capability, passes, build, load"):
        find_target("partial")


def test_unknown_name_tells_the_nearest_and_all(site: Path) -> None:
    with pytest.raises(TargetNotFound, match="no target 'openvno' is installed") as raised:
        find_target("openvno", where="kiosk.yaml:4 target")
    assert "Did you mean 'openvino'?" in raised.value.remedy
    assert "reference" in raised.value.remedy


def test_absent_distribution_has_the_version_absent() -> None:
    assert installed_version("no-such-distribution-anywhere") == "absent"


RELU = "(float[2] x) => (float[2] y) { y = Relu(x) }"


def _refusals(text: str, rules: dict[str, OpRule]) -> list[str]:
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21, "acme": 1]> g {text}'))
    capability = Capability(ops=rules, precisions=(), dynamic_dims=True, opset_max=21)
    return [str(refusal) for refusal in find_unsupported(model, capability)]


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        ("(float[2] x) => (float[2] y) { y = Relu(x) }", {}, "no operator Relu"),
        ("(float[2] x) => (float[2] y) { y = acme.Relu(x) }", {"Relu": OpRule()}, "no operator acme::Relu"),
        (
            "(double[2] x) => (double[2] y) { y = Relu(x) }",
            {"Relu": OpRule(dtypes=frozenset({"FLOAT"}))},
            "DOUBLE is not among FLOAT",
        ),
        ("(float[2,2,2] x) => (float[2,2,2] y) { y = Relu(x) }", {"Relu": OpRule(rank_max=2)}, "rank 3 is above 2"),
        (
            "(float[2] x, int64[1] r) => (float[4] y) { y = Tile(x, r) }",
            {"Tile": OpRule(constant_inputs=(1,))},
            "input 1 must be a constant",
        ),
        (
            '(float[1,4,2,2] x) => (float[1,1,4,4] y) { y = DepthToSpace<blocksize=2, mode="CRD">(x) }',
            {"DepthToSpace": OpRule(attributes={"mode": ("DCR",)})},
            "mode='CRD' is not among 'DCR'",
        ),
        ("(float a, float b) => (float y) { y = Max(a, b) }", {"Max": OpRule(inputs_max=1)}, "2 inputs"),
        (
            "(float[4] x) => (float[2] y, float[2] z) { y, z = Split<num_outputs=2>(x) }",
            {"Split": OpRule(outputs_max=1)},
            "2 outputs",
        ),
    ],
)
def test_node_outside_its_rule_is_refused_with_the_reason(text: str, rules: dict[str, OpRule], reason: str) -> None:
    found = _refusals(text, rules)
    assert len(found) == 1
    assert reason in found[0]


def test_node_inside_every_bound_of_its_rule_is_taken() -> None:
    rule = OpRule(dtypes=frozenset({"FLOAT", "INT64"}), constant_inputs=(1,), rank_max=1, inputs_max=2, outputs_max=1)
    text = "(float[2] x) => (float[4] y) <int64[1] r = {2}> { y = Tile(x, r) }"
    assert _refusals(text, {"Tile": rule}) == []


def test_nodes_of_subgraphs_are_looked_at() -> None:
    text = (
        "(bool c, float[2] x) => (float[2] y) { y = If(c) <then_branch = t() => (float[2] a) { a = Relu(x) }, "
        "else_branch = e() => (float[2] b) { b = Neg(x) }> }"
    )
    assert [found.split()[0] for found in _refusals(text, {"If": OpRule()})] == ["Relu", "Neg"]


def test_all_refusals_are_reported_at_once() -> None:
    model = text_case("three", "(float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Abs(b) }").model()
    capability = Capability(ops={"Neg": OpRule()}, precisions=(), dynamic_dims=True, opset_max=21)
    with pytest.raises(UnsupportedModel, match="target 'acme' refuses 2 of 3 nodes") as raised:
        refuse_unsupported(model, capability, target="acme")
    assert "Relu" in str(raised.value)
    assert "Abs" in str(raised.value)


def test_nodes_refused_alike_are_one_line_with_a_count_and_the_first_names() -> None:
    """161 equal lines hid the other reasons."""
    body = "".join(f"a{index} = Relu(a{index - 1}) " for index in range(1, 6))
    text = f"(float[2] a0) => (float[2] y) {{ {body} b = Sigmoid(a5) y = Neg(b) }}"
    proto = text_case("many", text).proto()
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    capability = Capability(ops={"Neg": OpRule()}, precisions=(), dynamic_dims=True, opset_max=21)
    with pytest.raises(UnsupportedModel, match="target 'acme' refuses 6 of 7 nodes") as raised:
        refuse_unsupported(ir.from_proto(proto), capability, target="acme")
    lines = [line for line in str(raised.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        "  - Relu, 5 nodes ('n0', 'n1', 'n2' and 2 more): the target has no operator Relu",
        "  - Sigmoid 'n5': the target has no operator Sigmoid",
    ]


def test_a_model_of_a_newer_opset_than_the_toolchain_reads_is_refused() -> None:
    model = ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {RELU}'))
    capability = Capability(ops={"Relu": OpRule()}, precisions=(), dynamic_dims=True, opset_max=20)
    with pytest.raises(UnsupportedModel, match=r"opset 21; target 'acme' reads up to 20"):
        refuse_unsupported(model, capability, target="acme")


def test_an_operator_of_an_older_meaning_is_refused() -> None:
    (refusal,) = _refusals(RELU, {"Relu": OpRule(opset_min=22)})
    assert "opset 21 gives it another meaning" in refusal


class ToolchainOnly(FakeTarget):
    """Says which versions are installed."""

    def __init__(self, **versions: str) -> None:
        self.versions = versions

    def toolchain(self) -> dict[str, str]:
        return self.versions


class WithAlternatives(ToolchainOnly):
    """Builds with `ahead` or with `late`, and always needs `linker`."""

    alternatives = frozenset({"ahead", "late"})


@pytest.mark.parametrize(
    ("ahead", "late", "linker", "missing"),
    [
        ("1.7", "absent", "2", ()),
        ("absent", "10.1", "2", ()),
        ("absent", "absent", "2", ("ahead", "late")),
        ("1.7", "absent", "absent", ("linker",)),
    ],
)
def test_one_of_several_alternatives_is_enough(ahead: str, late: str, linker: str, missing: tuple[str, ...]) -> None:
    assert missing_packages(WithAlternatives(ahead=ahead, late=late, linker=linker)) == missing


def test_without_alternatives_every_package_is_needed() -> None:
    assert missing_packages(ToolchainOnly(ahead="1.7", late="absent")) == ("late",)


def test_tensorrt_is_complete_with_either_of_its_libraries() -> None:
    target = find_target("tensorrt")
    assert isinstance(target, HasAlternatives)
    assert set(target.toolchain()) == target.alternatives


@pytest.mark.parametrize("contract", [Capability, PrecisionRule, OpRule])
def test_whatever_a_target_must_state_is_read_by_the_compiler(contract: type) -> None:
    """A field that no module reads is work for every author of a target, and says nothing to anybody."""
    sources = [path.read_text(encoding="utf-8") for path in Path(compiler.__file__).parent.rglob("*.py")]
    read = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert not [field.name for field in fields(contract) if field.name not in read]
