"""The search space of a model: its kernels, each with the ways to compute it, whatever family they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.arm_tvm.graph.composites import find_composites
from targets.arm_tvm.graph.lower import import_relax, integer_kernels
from targets.arm_tvm.kernels.floating_point.families import FAMILIES, all_choices
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload
from targets.arm_tvm.kernels.integer.dot_products import dot_of
from targets.arm_tvm.kernels.integer.kernel import Kernel, emit
from targets.arm_tvm.kernels.integer.specs import ConvSpec
from targets.arm_tvm.kernels.integer.tiles import workload_digest
from targets.arm_tvm.kernels.integer.ways import predicted_cost, way_choices, way_of
from targets.arm_tvm.kernels.machine import machine_of
from targets.arm_tvm.options import Options

if TYPE_CHECKING:
    import onnx_ir as ir

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """The search space of one kernel of a model.

    Args:
        name: Shown to people.
        digest: Digest of its workload: the key in schedules and tuning records.
        choices: Best predicted first.
        work: Instructions that the first is predicted to take.
        emit: Writes the TIR function of one of the choices.
    """

    name: str
    digest: str
    choices: tuple[dict[str, Any], ...]
    work: float
    emit: Callable[[Parameters], Any]


def find_spaces(model: ir.Model, options: Options, precision: str = "fp32") -> dict[str, tuple[Space, int]]:
    """Digest → a kernel of our families and how often the model executes it, all of them in the order of the graph."""
    spaces = [*_float_spaces(model, options, precision), *_integer_spaces(model, options)]
    counts = Counter(space.digest for space in spaces)
    return {space.digest: (space, counts[space.digest]) for space in spaces}


def _float_spaces(model: ir.Model, options: Options, precision: str) -> Iterator[Space]:
    from tvm import relax

    machine = machine_of(options)
    module = import_relax(model, options, precision=precision)
    main = relax.transform.FoldConstant()(module)["main"]
    for composite in find_composites(main).values():
        choices = all_choices(composite.workload, machine)
        if choices:
            yield _float_space(composite.workload, choices, machine)


def _float_space(work: ConvWorkload, choices: tuple[Choice, ...], machine: Any) -> Space:
    def write(parameters: Parameters) -> Any:
        choice = next(option for option in choices if option.to_dict() == dict(parameters))
        return FAMILIES[choice.family].emit(work, choice, machine)

    return Space(_name(work), work.digest, tuple(choice.to_dict() for choice in choices), choices[0].cost, write)


def _integer_spaces(model: ir.Model, options: Options) -> Iterator[Space]:
    kernels = integer_kernels(model, dot_of(options.arch, options.mcpu, options.mattr))
    for kernel in kernels.values():
        if isinstance(kernel.spec, ConvSpec) and kernel.way is not None:
            yield _integer_space(kernel, kernel.spec)


def _integer_space(kernel: Kernel, spec: ConvSpec) -> Space:
    dot = kernel.dot
    ways = way_choices(spec, dot)

    def write(parameters: Parameters) -> Any:
        return emit(Kernel(spec, dot, way_of(parameters)))

    choices, work = tuple(way.to_dict() for way in ways), predicted_cost(spec, ways[0], dot)
    return Space(_integer_name(spec), workload_digest(spec, dot), choices, work, write)


def _name(work: ConvWorkload) -> str:
    kind = "depthwise" if work.groups > 1 else "conv"
    rows, columns = work.kernel
    size = f"{work.channels}->{work.filters} on {work.height}x{work.width}"
    if work.layout == "rows":
        return f"product {work.channels}->{work.filters} of {work.width} rows"
    stride = f"/{work.strides[0]}" if work.strides != (1, 1) else ""
    return " ".join([f"{kind} {rows}x{columns}{stride} {size}", *(step.split()[0] for step in work.epilogue)])


def _integer_name(spec: ConvSpec) -> str:
    rows, columns = spec.kernel
    source, filters = spec.source, spec.result.channels
    if source.layout == "rows":
        return f"int8 product {source.channels}->{filters} of {source.width} rows"
    stride = f"/{spec.strides[0]}" if spec.strides != (1, 1) else ""
    return f"int8 conv {rows}x{columns}{stride} {source.channels}->{filters} on {source.height}x{source.width}"
