"""ONNX → Relax → object files for the profile's triple, CPU and features."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from compiler.target import Array, TensorSpec, ToolchainFailed, UnsupportedModel
from targets.arm_tvm.graph.blocks import PRODUCT, ROWS, convert_blocks
from targets.arm_tvm.graph.budget import budget_of, least_payload
from targets.arm_tvm.graph.capability import find_details
from targets.arm_tvm.graph.composites import note_bfloat16, note_factors
from targets.arm_tvm.graph.conversions import convert, write_pads
from targets.arm_tvm.graph.decoder import (
    ATTENTION,
    DecoderBuild,
    border_specs,
    convert_attention,
    decoder_models,
    describe_decoder,
)
from targets.arm_tvm.graph.fold_constants import fold_constants
from targets.arm_tvm.graph.kernel_objects import compile_kernels
from targets.arm_tvm.graph.lifted_weights import lift_weights
from targets.arm_tvm.graph.packing import Schedule, choose_alike, choose_kernels, pack_graph
from targets.arm_tvm.graph.quantized.rewrite import DOMAIN, OPERATOR, IntegerModel, Packing, use_integers
from targets.arm_tvm.graph.quantized.stored import take_stored
from targets.arm_tvm.graph.recurrent import RECURRENT, recurrent, reverse_sequence
from targets.arm_tvm.graph.reshapes import keep_reshapes_apart, merge_reshapes
from targets.arm_tvm.graph.sizes import Sizes, bind_size
from targets.arm_tvm.graph.tvm_kernels import parallelize
from targets.arm_tvm.kernels.integer.dot_products import dot_of
from targets.arm_tvm.kernels.integer.kernel import Kernel, call
from targets.arm_tvm.kernels.integer.specs import Dot
from targets.arm_tvm.kernels.machine import Machine, machine_of
from targets.arm_tvm.options import Options

GENERIC = Options("aarch64-linux-gnu")
"""Any 64-bit ARM core."""


OWN_OPERATORS = (*RECURRENT, "ReverseSequence")
"""Operators that TVM's importer lacks and we convert."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one size of a model, in order, with the types that TVM inferred."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Lowered:
    """Compiled code, not linked yet.

    Args:
        objects: Object files, in link order.
        weights: Arguments of the function `main` after its inputs.
        inputs: Inputs of the function, in order, with the types that TVM inferred.
        outputs: Its outputs, likewise.
        least_payload_bytes: As of `Artifact`.
        sizes: How a range is built; None where all sizes are fixed.
        signatures: Of a range, inputs and outputs at each size of `sizes.built`.
        decoder: Of a decoder, what payload/decoder.txt says.
    """

    objects: tuple[Path, ...]
    weights: tuple[Array, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    least_payload_bytes: int | None = None
    sizes: Sizes | None = None
    signatures: tuple[Signature, ...] = ()
    decoder: str = ""

    @property
    def shapes(self) -> dict[str, list[tuple[int | str, ...]]]:
        """Input or output → its shape at each size of a range."""
        sizes = [(*own.inputs, *own.outputs) for own in self.signatures]
        return {specs[0].name: [spec.shape for spec in specs] for specs in zip(*sizes, strict=True)}


def lower(
    model: ir.Model,
    options: Options,
    *,
    workdir: Path,
    cache_dir: Path,
    schedule: Schedule,
    precision: str = "fp32",
    payload_bytes: int | None = None,
    sizes: Sizes | None = None,
    decoder: DecoderBuild | None = None,
) -> Lowered:
    """Compiles a model of static shapes, one with a range of sizes, or a decoder with its cache in place.

    Args:
        model: The border model; left as it is.
        options: What to compile for.
        workdir: An existing folder for the object files.
        cache_dir: Where those of kernels are kept for other builds.
        schedule: Digest of a workload → the choice to take for it; others take the analytic default.
        precision: `bf16` rounds what kernels multiply; all others are in the model.
        payload_bytes: Most bytes of the bundle's payload; None: no limit.
        sizes: How the range of the model's open dimension is built; None where it has none.
        decoder: How a decoder is built; None of other models.

    Raises:
        UnsupportedModel: TVM's importer refuses a node, which is named.
        ToolchainFailed: TVM fails later, in a pass or in code generation.
    """
    bound = decoder_models(model, decoder) if decoder is not None else _bound_models(model, sizes)
    for one_size in bound.values():
        _refuse_details(one_size)
    modules = _import_all(bound, options, schedule, precision)
    signatures = {name: _signature_of(bound[name], module) for name, module in modules.items()}
    try:
        packed, least = _packed(modules, options, schedule, payload_bytes)
        objects, weights = _compile(packed, options, workdir, cache_dir)
    except Exception as error:  # TVM raises whatever its passes raise
        raise ToolchainFailed(
            f"TVM cannot compile the model for {options.mtriple} {options.mcpu}: {last_line(error)}",
            remedy="Build with --dump-passes and bisect with --stop-after, or report the border model to TVM.",
        ) from error
    if decoder is not None:
        return _lowered_decoder(model, decoder, objects, weights, signatures)
    if sizes is None:
        (only,) = signatures.values()
        return Lowered(objects, weights, only.inputs, only.outputs, least)
    ordered = tuple(signatures[function_name(size)] for size in sizes.built)
    return Lowered(
        objects,
        weights,
        tuple(_open_spec(model.graph.inputs, specs) for specs in zip(*(own.inputs for own in ordered), strict=True)),
        tuple(_open_spec(model.graph.outputs, specs) for specs in zip(*(own.outputs for own in ordered), strict=True)),
        least,
        sizes,
        ordered,
    )


def _lowered_decoder(
    model: ir.Model,
    build: DecoderBuild,
    objects: tuple[Path, ...],
    weights: tuple[Array, ...],
    signatures: Mapping[str, Signature],
) -> Lowered:
    inputs, outputs = border_specs(model)
    ordered = tuple(signatures[function_name(size)] for size in build.sizes.built)
    told = describe_decoder(model, build, ordered[0].inputs, ordered[0].outputs)
    return Lowered(objects, weights, inputs, outputs, None, build.sizes, ordered, told)


def function_name(size: int) -> str:
    """What the virtual machine names the model at one of several sizes; native/model.c says the same."""
    return f"main_{size}"


def _bound_models(model: ir.Model, sizes: Sizes | None) -> dict[str, ir.Model]:
    """Name of a function → the model that it computes; the one that decides how weights are packed comes first."""
    if sizes is None:
        return {"main": model}
    ordered = (sizes.best, *(size for size in sizes.built if size != sizes.best))
    return {function_name(size): bind_size(model, sizes.dimension, size) for size in ordered}


def _signature_of(model: ir.Model, module: Any) -> Signature:
    names = [str(value.name) for value in _model_inputs(model)], [str(value.name) for value in model.graph.outputs]
    signature = Signature(*read_signature(module, *names))
    _check_outputs(model, signature.outputs)
    return signature


def _open_spec(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> TensorSpec:
    """What a tensor is at any size: axes that depend on it have the model's name for them, or a made one."""
    first = specs[0]
    (shape,) = [value.shape for value in values if value.name == first.name]
    declared = [None if isinstance(dim, int) else dim.value for dim in shape or ()]
    names = [name or f"{first.name}.{axis}" for axis, name in enumerate(declared or [None] * len(first.shape))]
    extents = list(zip(*(spec.shape for spec in specs), strict=True))
    dims = [own[0] if len(set(own)) == 1 else names[axis] for axis, own in enumerate(extents)]
    return TensorSpec(first.name, first.dtype, tuple(dims))


def _packed(
    modules: Mapping[str, Any], options: Options, schedule: Schedule, payload_bytes: int | None
) -> tuple[dict[str, Any], int | None]:
    """The modules with our kernels, all with the weights as the first one has them; and the least payload."""
    machine, count = machine_of(options), len(modules)
    folded = {name: fold_constants(module) for name, module in modules.items()}
    first, *others = folded.values()
    least = None if payload_bytes is None else least_payload(first, machine, sizes=count)
    budget = budget_of(options, payload_bytes, sizes=count)
    chosen = choose_kernels(first, machine, schedule=schedule, budget=budget, others=others)
    packed: dict[str, Any] = {}
    for name, module in folded.items():
        own = chosen if module is first else choose_alike(module, machine, chosen)
        with_kernels = pack_graph(module, machine, schedule=schedule, chosen=own)
        packed[name] = modules[name] if with_kernels is None else with_kernels
    return packed, least


def _import_all(models: Mapping[str, ir.Model], options: Options, schedule: Schedule, precision: str) -> dict[str, Any]:
    """As `import_relax`; integer weights are packed by all as by the first."""
    modules: dict[str, Any] = {}
    packings: Mapping[str, Packing] | None = None
    for name, model in models.items():
        integer = use_integers(_prepared(model), _dot_of(options), schedule, packings=packings)
        packings = packings if packings is not None else integer.packings
        module = _import(integer, options, model.opset_imports.get("", 1))
        modules[name] = note_bfloat16(module) if precision == "bf16" else module
    return modules


def _dot_of(options: Options) -> Dot:
    return dot_of(options.arch, options.mcpu, options.mattr)


def import_relax(
    model: ir.Model, options: Options = GENERIC, schedule: Schedule | None = None, *, precision: str = "fp32"
) -> Any:
    """The model as a Relax module whose function `main` holds the weights as constants.

    Args:
        model: The border model; left as it is.
        options: What to compile for; for kernels that the importer calls.
        schedule: Digest of a workload → the choice to take for it; for what runs in integers.
        precision: As of `lower`.

    Raises:
        UnsupportedModel: The importer refuses a node, which is named.
    """
    return _import_all({"main": model}, options, schedule or {}, precision)["main"]


def _import(integer: IntegerModel, options: Options, opset: int) -> Any:
    # Where activations are quantized too, what stays in float is as the model says.
    factors = {} if integer.kernels else take_stored(integer.model)
    weights = _take_weights(integer.model)
    proto = ir.to_proto(integer.model)
    importer = _importer(integer.kernels, weights, machine_of(options))(shape_dict={}, dtype_dict="float32")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the importer prints failures and warns of names it changes
        try:
            return note_factors(importer.from_onnx(proto.graph, opset), factors)
        except UnsupportedModel:
            raise
        except Exception as error:  # from outside of any one node
            raise UnsupportedModel(f"TVM cannot import the model: {last_line(error)}") from error


def integer_kernels(model: ir.Model, dot: Dot) -> Mapping[int, Kernel]:
    """The kernels of what runs in integers, each as often as the model has it; arguments as in `import_relax`."""
    return use_integers(_prepared(model), dot).kernels


def _take_weights(model: ir.Model) -> dict[str, Array]:
    """Takes the initializers out of the main graph: one message has no room for those of large models."""
    weights = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    for name in weights:
        del model.graph.initializers[name]
    return weights


def _importer(kernels: Mapping[int, Kernel], weights: Mapping[str, Array], machine: Machine) -> Any:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Importer(ONNXGraphImporter):  # type: ignore[misc]  # TVM is untyped
        """TVM's importer, which knows our kernels and names the node that it cannot convert."""

        def _parse_graph_initializers(self, graph: Any) -> None:
            # Not contiguous where a weight is the transpose of another.
            arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}
            self._nodes |= {name: relax.const(tvm.runtime.tensor(array)) for name, array in arrays.items()}

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            # TVM's check knows the operators that it converts itself and would refuse those that we convert.
            known = onnx.GraphProto()
            known.node.extend(
                node for node in graph.node if node.domain != DOMAIN and node.op_type not in OWN_OPERATORS
            )
            super()._check_for_unsupported_ops(known)

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            if op_name == OPERATOR:
                return call(self.bb, kernels[attrs["kernel"]], list(inputs))
            if op_name == ATTENTION:
                return convert_attention(self.bb, list(inputs), attrs["scale"])
            if op_name in (PRODUCT, ROWS):
                return convert_blocks(self.bb, op_name, list(inputs))
            try:
                if op_name in RECURRENT:
                    return recurrent(self.bb, machine, op_name, list(inputs), attrs)
                if op_name == "ReverseSequence":
                    return reverse_sequence(self.bb, list(inputs), attrs)
                converted = convert(op_name, list(inputs), attrs)
                if converted is not None:
                    return self.bb.normalize(converted)
                return super()._convert_operator(op_name, inputs, attrs, opset)
            except Exception as error:
                name = attrs["tvm_custom"]["name"] or "(unnamed)"
                raise UnsupportedModel(
                    f"TVM cannot import the node: {last_line(error)}",
                    where=f"{op_name} '{name}'",
                    remedy="Choose another target for this device, or replace this operator in the model.",
                ) from error

    return Importer


def _prepared(model: ir.Model) -> ir.Model:
    """A copy as TVM takes it: constants as initializers, and inputs named in0, in1, …."""
    copy = model.clone()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    write_pads(copy)
    taken = {value.name for node in copy.graph.all_nodes() for value in node.outputs} | set(copy.graph.initializers)
    for index, value in enumerate(_model_inputs(copy)):
        # The importer changes names that are no identifiers; these it leaves as they are.
        name = f"in{index}"
        while name in taken:
            name += "_"
        value.name = name
    return copy


def _model_inputs(model: ir.Model) -> Iterator[ir.Value]:
    return (value for value in model.graph.inputs if value.name not in model.graph.initializers)


def _compile(
    packed: Mapping[str, Any], options: Options, workdir: Path, cache_dir: Path
) -> tuple[tuple[Path, ...], tuple[Array, ...]]:
    import tvm

    target = tvm.target.Target(options.target)
    lifted, weights = lift_weights([_fuse(module, target) for module in packed.values()])
    modules = dict(zip(packed, lifted, strict=True))
    return compile_kernels(modules, options, workdir=workdir, cache_dir=cache_dir), weights


def _fuse(module: Any, target: Any) -> Any:
    """The first half of TVM's own CPU pipeline: fused kernels, spread over the threads."""
    import tvm
    from tvm.relax.backend.cpu_generic import pipeline as cpu

    with target:
        legalize, *fuse = cpu.legalize_passes(target)
        legal = tvm.transform.Sequential([*cpu.library_dispatch_passes(target), legalize])(merge_reshapes(module))
        fused = tvm.transform.Sequential(fuse)(keep_reshapes_apart(legal))
    return parallelize(fused)


def read_signature(
    module: Any, inputs: list[str], outputs: list[str]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of `main`, under the model's own names.

    Raises:
        UnsupportedModel: A shape is not fixed.
    """
    from tvm import relax

    function = module["main"]
    returned = function.ret_ty
    fields = list(returned.fields) if isinstance(returned, relax.TupleType) else [returned]
    return (
        tuple(_spec(name, param.ty) for name, param in zip(inputs, function.params, strict=True)),
        tuple(_spec(name, field) for name, field in zip(outputs, fields, strict=True)),
    )


def _spec(name: str, type_: Any) -> TensorSpec:
    shape = getattr(getattr(type_, "shape", None), "values", None)
    if shape is None or not all(hasattr(size, "value") for size in shape):
        raise UnsupportedModel(
            f"'{name}' has no fixed shape; TVM sees {str(type_)[:200]}",
            remedy="Bind every dimension in the fleet file: this target builds for one shape.",
        )
    return TensorSpec(name, str(type_.dtype), tuple(int(size) for size in shape))


def _refuse_details(model: ir.Model) -> None:
    refusals = tuple(find_details(model))
    if refusals:
        lines = "\n".join(f"  - {refusal}" for refusal in refusals)
        raise UnsupportedModel(
            f"target 'tvm' refuses {len(refusals)} of {sum(1 for _ in model.graph.all_nodes())} nodes:\n{lines}",
            remedy="Choose another target for this device, or replace these operators in the model.",
        )


def _check_outputs(model: ir.Model, outputs: tuple[TensorSpec, ...]) -> None:
    """What TVM inferred must be what the model declares, where it declares it."""
    for value, spec in zip(model.graph.outputs, outputs, strict=True):
        dtype = value.dtype.numpy().name if value.dtype is not None else spec.dtype
        shape = tuple(value.shape) if value.shape is not None else spec.shape
        if dtype != spec.dtype or len(shape) != len(spec.shape) or not all(map(_agree, shape, spec.shape)):
            raise UnsupportedModel(
                f"TVM gives output '{spec.name}' as {spec.dtype} {spec.shape}, the model says {dtype} {shape}"
            )


def _agree(declared: object, inferred: object) -> bool:
    return not isinstance(declared, int) or declared == inferred


def last_line(error: Exception) -> str:
    """The message of a TVM exception, without the trace that TVM puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]
