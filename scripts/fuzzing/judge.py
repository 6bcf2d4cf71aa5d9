"""What a graph is put through, and the verdict of each check.

A check is a name: `read`, `passes`, `pass:fuse-gelu`, `half:fp16`, `prune`, `onnxsim`, `target:openvino:int8`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from compiler.compress.prune.prune import find_order, prune
from compiler.compress.quant import quantize
from compiler.errors import CompilerError, InternalError, ToolchainFailed
from compiler.fleet.profile import HardwareProfile, load_profile, validate_options
from compiler.model.frontend import read_model
from compiler.model.graph import check_model
from compiler.model.numerics import TOLERANCES, Array, Arrays, compare_all, is_floating
from compiler.model.reference import Unoptimized
from compiler.passes.decompose_operators import DecomposeOperators
from compiler.passes.pipelines import PORTABLE, load_passes, precision_passes
from compiler.passes.probe import tolerance_of
from compiler.passes.quantized import is_quantized
from compiler.passes.run import run_passes
from compiler.passes.select_branches import SelectBranches
from compiler.passes.unroll_loops import UnrollLoops
from compiler.passes.use_float32 import UseFloat32
from compiler.target import TargetPlan, TargetUnavailable, find_target
from compiler.target.capability import is_refused, refuse_unsupported
from fuzzing.sketch import Graph, run_runtime


class Outcome(StrEnum):
    """What came of one check."""

    RIGHT = "right"
    WRONG = "wrong"  # another result, and no error
    FAULT = "fault"  # an exception that is no answer to the user: our bug
    CRASH = "crash"
    HANG = "hang"
    TOOLCHAIN = "toolchain"  # the vendor's tool failed on what the target claims
    REFUSED = "refused"
    UNSTABLE = "unstable"  # the outputs jump on rounding errors of the inputs: nothing can be said
    NOT_RUN = "not run"


BAD = (Outcome.WRONG, Outcome.FAULT, Outcome.CRASH, Outcome.HANG)

HOST_ARM = {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "mattr": []}
_BEFORE_PASSES = ("inline-functions", "raise-opset", "infer-shapes")
_NUDGES = {"fp32": 3e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 5e-3}
"""Level → relative change of the inputs that it should not see: some times the rounding of its arithmetic."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check, and what it says."""

    check: str
    outcome: Outcome
    message: str = ""


class _Wrong(Exception):
    """The outputs differ; the message says which."""


class _NotRun(Exception):
    """The artifact was built, and nothing here runs it."""


class _Unstable(Exception):
    """The graph's own outputs depend on rounding."""


def pass_checks() -> tuple[str, ...]:
    """All passes together, each of them alone, both conversions, and pruning."""
    names = dict.fromkeys(name for name in PORTABLE if name not in ("simplify-onnxsim", *_BEFORE_PASSES[:2]))
    return ("passes", *(f"pass:{name}" for name in names), "half:fp16", "half:bf16", "prune")


def judge(graph: Graph, checks: Sequence[str]) -> Iterator[Verdict]:
    """The verdict of each check; those of single passes are made on a model whose opset is raised."""
    models = [ir.from_proto(graph.model)]
    before = b""
    if any(check.startswith(("pass:", "half:")) for check in checks):
        verdict = _verdict("prepare", lambda: models.append(_prepared(models[0])))
        if len(models) == 1:
            yield verdict
            checks = [check for check in checks if not check.startswith(("pass:", "half:"))]
        before = _bytes(models[-1])
    for check in checks:
        yield _verdict(check, lambda check=check: _run(check, graph, models, before=before))


def _verdict(check: str, work: Callable[[], object]) -> Verdict:
    """The outcome by the exception: only those of our tree that belong to the user are answers."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            work()
    except _Wrong as error:
        return Verdict(check, Outcome.WRONG, str(error))
    except _Unstable:
        return Verdict(check, Outcome.UNSTABLE)
    except (_NotRun, TargetUnavailable) as error:
        return Verdict(check, Outcome.NOT_RUN, str(error))
    except ToolchainFailed as error:
        return Verdict(check, Outcome.TOOLCHAIN, str(error))
    except InternalError as error:
        return Verdict(check, Outcome.FAULT, f"InternalError: {error}")
    except CompilerError as error:
        return Verdict(check, Outcome.REFUSED, f"{type(error).__name__}: {error}")
    except Exception as error:  # whatever else is raised is what the fuzzing looks for
        return Verdict(check, Outcome.FAULT, f"{type(error).__name__}: {str(error)[:600]} ({_place(error)})")
    return Verdict(check, Outcome.RIGHT)


def _place(error: BaseException) -> str:
    """File and line of the last frame of ours."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " < ".join(reversed(frames[-4:]))


def _run(check: str, graph: Graph, models: Sequence[ir.Model], *, before: bytes) -> None:
    """One check, on the model as it is, or with its types known and its opset raised; `before` has its bytes."""
    model, prepared = models[0], models[-1]
    kind, _, rest = check.partition(":")
    if kind == "read":
        _read(graph)
    elif kind == "prepare":
        _prepared(model)
    elif kind == "passes":
        _pipeline(graph, model, [name for name in PORTABLE if name != "simplify-onnxsim"])
    elif kind == "onnxsim":
        _pipeline(graph, model, PORTABLE)
    elif kind == "pass":
        _one_pass(graph, prepared, rest, before=before)
    elif kind == "half":
        _half(prepared, rest)
    elif kind == "prune":
        _prune(graph, model)
    else:
        name, _, precision = rest.partition(":")
        with tempfile.TemporaryDirectory(prefix="fleetc-fuzz-") as folder:
            _target(graph, model, name, precision, Path(folder))


def _read(graph: Graph) -> None:
    """What a user's file goes through first; the reading checks in a child process, which takes half a second."""
    with tempfile.TemporaryDirectory(prefix="fleetc-fuzz-") as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(graph.model.SerializeToString())
        model = read_model(path).model
    _hold(graph, Unoptimized(model).run(graph.inputs), model)


def _pipeline(graph: Graph, model: ir.Model, names: Sequence[str]) -> None:
    """All passes; where the result is wrong, the message names the first pass after which it is."""
    copy = model.clone()
    run_passes(copy, load_passes(names))
    actual = Unoptimized(copy).run(graph.inputs)
    if difference(graph, actual, copy):
        _hold(graph, actual, copy, blame=_first_wrong(graph, model, names))


def _first_wrong(graph: Graph, model: ir.Model, names: Sequence[str]) -> str:
    copy = model.clone()
    for step in load_passes(names):
        step(copy)
        if difference(graph, Unoptimized(copy).run(graph.inputs), copy):
            return f"after {step.name}: "
    return ""


def _prepared(model: ir.Model) -> ir.Model:
    copy = model.clone()
    for step in load_passes(_BEFORE_PASSES):
        step(copy)
    return copy


def _one_pass(graph: Graph, model: ir.Model, name: str, *, before: bytes) -> None:
    """One pass: valid, right, and truthful about whether it changed anything."""
    copy = model.clone()
    interface = _interface(copy)
    result = load_passes([name])[0](copy)
    if result.modified != (_bytes(copy) != before):
        raise _Wrong(f"the pass says modified={result.modified}, which is not so")
    if not result.modified:
        return
    check_model(copy)
    if _interface(copy) != interface:
        raise _Wrong(f"the interface was {interface}, and is {_interface(copy)}")
    _hold(graph, Unoptimized(copy).run(graph.inputs), copy)


def _bytes(model: ir.Model) -> bytes:
    """The model, weights and all; names of tensors inside attributes are left out, since clones share the tensors."""
    proto = ir.to_proto(model)
    _drop_tensor_names(proto.graph)
    return proto.SerializeToString(deterministic=True)


def _drop_tensor_names(graph: onnx.GraphProto) -> None:
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("t"):
            attribute.t.ClearField("name")
        if attribute.HasField("g"):
            _drop_tensor_names(attribute.g)


def _interface(model: ir.Model) -> list[tuple[str | None, str]]:
    return [(value.name, str(value.dtype)) for value in (*model.graph.inputs, *model.graph.outputs)]


def _half(model: ir.Model, precision: str) -> None:
    """The converted graph is valid; ranges are the calibration's business, so its numbers are not judged."""
    copy = model.clone()
    if is_quantized(copy):
        return
    run_passes(copy, precision_passes(precision), check_each=True)


def _rewritten(model: ir.Model) -> ir.Model:
    copy = model.clone()
    run_passes(copy, load_passes(name for name in PORTABLE if name != "simplify-onnxsim"))
    return copy


def _prune(graph: Graph, model: ir.Model) -> None:
    """Channels cut on two batches: valid, the interface as it was, finite outputs of the same shapes."""
    copy = _rewritten(model)

    def batches() -> list[Arrays]:
        return [graph.inputs, _nudged(graph.inputs, 0.1, seed=1)]

    pruned = prune(copy, find_order(copy, batches), batches, ratio=0.3, multiple=1)
    check_model(pruned.model)
    actual = Unoptimized(pruned.model).run(graph.inputs)
    shapes = {name: (array.shape, array.dtype) for name, array in graph.expected.items()}
    if shapes != {name: (array.shape, array.dtype) for name, array in actual.items()}:
        raise _Wrong("the outputs have other shapes or types after pruning")
    if not all(np.isfinite(array).all() for array in actual.values() if array.dtype.kind == "f"):
        raise _Wrong("the outputs are not finite after pruning")


@cache
def profile_of(target: str) -> HardwareProfile:
    """The profile that a target is judged on: one whose artifacts this machine runs, where there is one."""
    if target == "tvm":
        return HardwareProfile(schema=1, name="host", target="tvm", target_options=HOST_ARM)
    names = {"openvino": "intel-n100", "tensorrt": "nvidia-l4"}
    if target in names:
        return load_profile(names[target])
    return HardwareProfile(schema=1, name="any", target=target)


def _target(graph: Graph, model: ir.Model, name: str, precision: str, folder: Path) -> None:
    """The way of a build: portable passes, quantized or not, what the target lacks written out, built, run."""
    target, profile = find_target(name), profile_of(name)
    capability = target.capability(profile)
    rule = next((rule for rule in capability.precisions if rule.name == precision), None)
    if rule is None:
        raise _NotRun(f"{name} has no {precision}")
    border = _rewritten(model)
    if rule.scheme is not None:
        batches = [graph.inputs, _nudged(graph.inputs, 0.1, seed=1)]
        border = quantize(border, batches, rule.scheme).model
    opset = border.graph.opset_imports.get("", 1)

    def refuses(node: ir.Node) -> bool:
        return is_refused(node, capability, opset)

    needed = any(refuses(node) for node in border.graph.all_nodes())
    steps = (UseFloat32(refuses), SelectBranches(refuses), UnrollLoops(refuses), DecomposeOperators(refuses))
    own = steps if needed else ()
    judged_by = border.clone() if rule.scheme is not None else None
    run_passes(border, [*own, *target.passes(profile)])
    refuse_unsupported(border, capability, target=name)
    plan = TargetPlan(precision, validate_options(target.Options, profile), threads=1, cache_dir=folder)
    target.check(profile)
    artifact = target.build(border, plan, profile, workdir=folder)
    if artifact.deferred:
        raise _NotRun(artifact.deferred)
    runner = target.load(artifact)
    try:
        actual = dict(runner.run({spec.name: graph.inputs[spec.name] for spec in artifact.inputs}))
    finally:
        runner.close()
    if judged_by is None:
        _hold(graph, actual, border)
    else:
        quantized = Graph(ir.to_proto(judged_by), graph.inputs, Unoptimized(judged_by).run(graph.inputs))
        _hold(quantized, actual, judged_by)


def difference(graph: Graph, actual: Arrays, model: ir.Model) -> str:
    """The first output that is not what the graph gives; empty where all are."""
    tolerance = tolerance_of(model)
    own = tolerance_of(ir.from_proto(graph.model))
    level = min(tolerance, own, key=lambda one: one.sqnr_db_min)
    for name, stats in compare_all(graph.expected, actual).items():
        expected = graph.expected[name]
        exact = not is_floating(expected) and level.name == "fp32"
        if not (TOLERANCES["exact"] if exact else level).accepts(stats):
            return f"output '{name}': {stats}"
        if actual[name].dtype != expected.dtype:
            return f"output '{name}' is {actual[name].dtype} and not {expected.dtype}"
    return ""


def _hold(graph: Graph, actual: Arrays, model: ir.Model, *, blame: str = "") -> None:
    """Raises _Wrong where the outputs differ, and _Unstable where they do when the inputs are nudged, too."""
    if not (found := difference(graph, actual, model)):
        return
    if _jumps(graph, model):
        raise _Unstable
    raise _Wrong(f"{blame}{found}")


def _jumps(graph: Graph, model: ir.Model) -> bool:
    """Whether a change of inputs and weights in the last digits moves the graph's outputs by as much."""
    level = min(tolerance_of(model), tolerance_of(ir.from_proto(graph.model)), key=lambda one: one.sqnr_db_min)
    nudge = _NUDGES[level.name]
    for seed in range(4):
        proto = onnx.ModelProto()
        proto.CopyFrom(graph.model)
        for tensor in proto.graph.initializer if seed % 2 else ():
            moved = _nudged({"": numpy_helper.to_array(tensor)}, nudge, seed=seed)[""]
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
        actual = run_runtime(proto, dict(_nudged(graph.inputs, nudge, seed=seed)))
        if actual is not None and difference(graph, actual, model):
            return True
    return False


def _nudged(inputs: Arrays, amount: float, *, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {
        name: (array * (1 + amount * random.uniform(-1, 1, array.shape))).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in inputs.items()
    }
