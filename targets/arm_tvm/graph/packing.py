"""Relax → Relax with our kernels: values stay in blocks of channels from kernel to kernel.

One pass over the bindings of `main`. A convolution or matrix product with constant weights becomes, with the bias,
residual and activation that follow it, one call of a kernel family's PrimFunc. Softmax, normalisations and products of
two values become kernels on plain tensors. Element-wise operators, pooling, padding
and means over the image are done on packed values with TVM's own kernels. A value is unpacked where something else
needs it; everything not recognised is left to TVM's default path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from targets.arm_tvm.graph.budget import UNLIMITED, Budget, allot_weights, layer_of
from targets.arm_tvm.graph.composites import Composite, find_composites
from targets.arm_tvm.graph.layouts import PackedValues, pack_constant, pack_value, unpack_value
from targets.arm_tvm.graph.packed_operators import packed_operator, reshape_of_packed
from targets.arm_tvm.graph.reading import array_digest, shape_of
from targets.arm_tvm.graph.rowwise import PlainKernel, find_plain_kernels
from targets.arm_tvm.kernels.floating_point.families import FAMILIES, alike, choose
from targets.arm_tvm.kernels.floating_point.workload import Choice, ConvWorkload, blocks
from targets.arm_tvm.kernels.machine import Machine

Schedule = Mapping[str, Mapping[str, object]]
"""Digest of a workload → the choice to take, as `Choice.to_dict` gives it."""


Chosen = Mapping[Any, tuple[Composite, Choice]]
"""First variable of a composite → the composite, and how it is computed."""


def choose_kernels(
    module: Any,
    machine: Machine,
    *,
    schedule: Schedule,
    budget: Budget = UNLIMITED,
    others: Sequence[Any] = (),
) -> Chosen:
    """How each composite of a module is computed that a kernel of ours applies to.

    Args:
        module: Relax as imported, weights as constants and folded: some are reshaped or transposed by the model.
        machine: The machine that the kernels are for.
        schedule: Digest of a workload → the choice to take.
        budget: What limits the bytes of weights.
        others: The same model at other sizes, which are to read the same packed weights.
    """
    main = module["main"]
    if not _is_plain(main):
        return {}
    composites = find_composites(main)
    limits = allot_weights(main, composites, machine, budget)
    elsewhere = _workloads(others)
    return {
        at: (composite, choice)
        for at, composite in composites.items()
        if (
            choice := choose(
                composite.workload,
                machine,
                schedule,
                most_bytes=limits.get(layer_of(composite)),
                others=elsewhere.get(array_digest(composite.weights), ()) if elsewhere else (),
            )
        )
    }


def choose_alike(module: Any, machine: Machine, chosen: Chosen) -> Chosen:
    """How each composite is computed with the packed weights of the same model at another size.

    Args:
        module: Relax, as of `choose_kernels`.
        machine: The machine that the kernels are for.
        chosen: What was chosen for the model at the other size.
    """
    main = module["main"]
    packed: dict[str, list[Choice]] = {}
    for composite, choice in chosen.values():
        packed.setdefault(array_digest(composite.weights), []).append(choice)
    result: dict[Any, tuple[Composite, Choice]] = {}
    for at, composite in (find_composites(main) if _is_plain(main) else {}).items():
        known = packed.get(array_digest(composite.weights), ())
        ways = [way for choice in known for way in alike(composite.workload, machine, choice)]
        # of weights that the other size does not have, as those that are folded, a copy is needed in any case
        best = min(ways, key=lambda way: way.cost) if ways else choose(composite.workload, machine, {})
        if best is not None:
            result[at] = (composite, best)
    return result


def _is_plain(main: Any) -> bool:
    """Whether a function is one block without side effects, as the importer writes it."""
    from tvm import relax

    if not isinstance(main.body, relax.SeqExpr) or len(main.body.blocks) != 1:
        return False
    return isinstance(main.body.blocks[0], relax.DataflowBlock)


def _workloads(modules: Sequence[Any]) -> dict[str, set[ConvWorkload]]:
    """Digest of weights → what computes with them in some modules."""
    workloads: dict[str, set[ConvWorkload]] = {}
    for module in modules:
        for composite in find_composites(module["main"]).values() if _is_plain(module["main"]) else ():
            workloads.setdefault(array_digest(composite.weights), set()).add(composite.workload)
    return workloads


def pack_graph(
    module: Any,
    machine: Machine,
    *,
    schedule: Schedule,
    budget: Budget = UNLIMITED,
    chosen: Chosen | None = None,
) -> Any | None:
    """The module with our kernels where they apply; None where none does.

    Args:
        module, machine, schedule, budget: As of `choose_kernels`.
        chosen: How its composites are computed; None: what `choose_kernels` gives.
    """
    main = module["main"]
    if not _is_plain(main):
        return None
    if chosen is None:
        chosen = choose_kernels(module, machine, schedule=schedule, budget=budget)
    claimed = {var for composite, _ in chosen.values() for var in (*composite.inner, composite.last)}
    plain = find_plain_kernels(main, machine, claimed=claimed)
    return _Packing(module, machine, chosen, plain).rewrite() if chosen or plain else None


class _Packing:
    """The function that is being written, and the values of the old one in it."""

    def __init__(
        self,
        module: Any,
        machine: Machine,
        chosen: Mapping[Any, tuple[Composite, Choice]],
        kernels: Mapping[Any, PlainKernel],
    ) -> None:
        from tvm import relax

        self.machine, self.values = machine, PackedValues(machine)
        self.main = module["main"]
        self.builder = relax.BlockBuilder(module)
        self.by_last = {composite.last: (composite, choice) for composite, choice in chosen.values()}
        self.kernels = kernels
        self.inner = {var for composite, _ in chosen.values() for var in composite.inner}
        self.inner |= {var for kernel in kernels.values() for var in kernel.inner}
        self.plain: dict[Any, Any] = {}
        self.functions: dict[str, Any] = {}

    def rewrite(self) -> Any:
        """The module with a new `main`."""
        params = [self._parameter(param) for param in self.main.params]
        block = self.main.body.blocks[0]
        attributes = dict(self.main.attrs.items()) if self.main.attrs else {}
        with self.builder.function("main_packed", params, attrs=attributes):
            with self.builder.dataflow():
                for binding in block.bindings:
                    if binding.var not in self.inner:
                        self._bind(binding)
                result = self.builder.emit_output(self._substitute(self.main.body.body))
            self.builder.emit_func_output(result)
        # The builder still holds the old `main`, so the new one was written under another name.
        grown = self.builder.get()
        return _renamed(grown)

    def _parameter(self, param: Any) -> Any:
        from tvm import relax

        self.plain[param] = relax.Var(param.name, param.ty)
        return self.plain[param]

    def _bind(self, binding: Any) -> None:
        if binding.var in self.by_last:
            self._kernel(binding.var, *self.by_last[binding.var])
            return
        if binding.var in self.kernels:
            self.plain[binding.var] = self._plain_kernel(self.kernels[binding.var])
            return
        packed = packed_operator(binding, self.values)
        if packed is not None:
            self.values.packed[binding.var] = self.builder.emit(packed)
            return
        plain = reshape_of_packed(binding, self.values)
        self.plain[binding.var] = self.builder.emit(plain if plain is not None else self._substitute(binding.value))

    def as_plain(self, var: Any) -> Any:
        """The value in the layout it has in the model."""
        if var not in self.plain:
            self.plain[var] = unpack_value(self.builder, self.values.packed[var], shape_of(var))
        return self.plain[var]

    def as_packed(self, var: Any) -> Any:
        """The value in blocks of channels."""
        if var not in self.values.packed:
            self.values.packed[var] = pack_value(self.builder, self.plain[var], shape_of(var), self.values.lanes(var))
        return self.values.packed[var]

    def _kernel(self, var: Any, composite: Composite, choice: Choice) -> None:
        from tvm import relax

        work, family = composite.workload, FAMILIES[choice.family]
        lanes = self.machine.lanes(work.dtype)
        weights = family.pack(work, choice, composite.weights, self.machine)
        bias = pack_constant(composite.bias, work.filters, lanes, work.dtype)
        source = self._operand(composite.source, work)
        operands = [source, relax.const(weights)]
        if composite.factors is not None:
            operands.append(relax.const(pack_constant(composite.factors, work.filters, lanes, work.dtype)))
        operands.append(relax.const(bias))
        if composite.residual is not None:
            operands.append(self._operand(composite.residual, work, residual=True))
        function = self._function(work, choice)
        shape = _result_shape(work, lanes)
        value = self.builder.emit(relax.call_tir(function, operands, relax.TensorType(shape, work.dtype)))
        if work.layout == "rows":
            self.plain[var] = self._reshaped(value, shape_of(var))
        else:
            self.values.packed[var] = value

    def _plain_kernel(self, kernel: PlainKernel) -> Any:
        """The call of a kernel on plain tensors, in the shape that the model has for its result."""
        from tvm import relax

        operands = [self._reshaped(self._substitute(value), shape) for value, shape in kernel.operands]
        if kernel.name not in self.functions:
            name = f"{kernel.name.split('_')[0]}_{len(self.functions)}"
            self.functions[kernel.name] = self.builder.add_func(kernel.emit(), name)
        result = relax.TensorType(kernel.shape, str(kernel.last.ty.dtype))
        value = self.builder.emit(relax.call_tir(self.functions[kernel.name], operands, result))
        return self._reshaped(value, shape_of(kernel.last))

    def _operand(self, var: Any, work: ConvWorkload, *, residual: bool = False) -> Any:
        if work.layout == "rows":
            size = work.filters if residual else work.channels
            return self._reshaped(self.as_plain(var), (work.width, size))
        return self.as_plain(var) if work.layout == "planar" and not residual else self.as_packed(var)

    def _reshaped(self, value: Any, shape: Sequence[int]) -> Any:
        from tvm import relax

        return value if shape_of(value) == tuple(shape) else self.builder.emit(relax.op.reshape(value, tuple(shape)))

    def _function(self, work: ConvWorkload, choice: Choice) -> Any:
        key = f"{work.digest} {choice.to_dict()}"
        if key not in self.functions:
            function = FAMILIES[choice.family].emit(work, choice, self.machine)
            name = f"{choice.family}_{work.layout}_{len(self.functions)}"
            self.functions[key] = self.builder.add_func(function.with_attr("fleetc.workload", work.digest), name)
        return self.functions[key]

    def _substitute(self, expression: Any) -> Any:
        """The expression of the old function over the values of the new one."""
        from tvm import relax

        if isinstance(expression, relax.Var):
            return self.as_plain(expression)
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([self._substitute(field) for field in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            return relax.TupleGetItem(self._substitute(expression.tuple_value), expression.index)
        if isinstance(expression, relax.Call):
            arguments = [self._substitute(argument) for argument in expression.args]
            return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)
        return expression


def _result_shape(work: ConvWorkload, lanes: int) -> tuple[int, ...]:
    if work.layout == "rows":
        return (work.width, work.filters)
    return (work.batch, blocks(work.filters, lanes), *work.result, lanes)


def _renamed(module: Any) -> Any:
    import tvm

    functions = {variable.name_hint: function for variable, function in module.functions_items()}
    main = functions["main_packed"].with_attr("global_symbol", "main")
    renamed = tvm.IRModule({}, attrs=module.attrs)
    for variable, function in module.functions_items():
        if variable.name_hint not in ("main", "main_packed"):
            renamed[variable] = function
    renamed["main"] = main
    return renamed
