"""A decoder whose cache stays inside the compiled model: OpenVINO's stateful form, as openvino-genai wants it.

    past ─→ model ─→ present     becomes     ReadValue → Gather(beam_idx) → model → Assign

An input and an output of the cache become a variable, which starts empty. `beam_idx` says which sequence of the last
step each sequence goes on from; it is 0, 1, … where nobody searches by beams. So the cache is not copied out and in
again at every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compiler.target import Array, Arrays, Artifact, DataError, LayerTime
from targets.intel_openvino.runner import CompiledRunner
from targets.intel_openvino.toolchain import first_lines, openvino

BEAM = "beam_idx"
POSITIONS = 2
"""The axis of the cache that grows."""

CACHE = "cache"
"""The artifact's fact: input of the cache → output that it grows into."""


def make_stateful(source: Path, target: Path, *, ids: str, pairs: Mapping[str, str]) -> None:
    """Writes a decoder's IR with its cache inside.

    Args:
        source: The IR whose cache is among its inputs and outputs.
        target: Where the other goes; another file, since weights are mapped from the first.
        ids: Input of token ids (batch, sequence).
        pairs: Input of the cache → output that it grows into.
    """
    from openvino.passes import MakeStateful, Manager

    ov = openvino()
    network = ov.Core().read_model(source)
    known = {node.get_friendly_name() for node in network.get_ops()} | {BEAM}
    _choose_sequences(network, ids, pairs)
    manager = Manager()
    manager.register_pass(MakeStateful(dict(pairs)))
    manager.run_passes(network)
    _start_empty(network, ids)
    for index, node in enumerate(network.get_ordered_ops()):
        if node.get_friendly_name() not in known:  # OpenVINO's own names count up per process
            node.set_friendly_name(f"{node.get_type_name()}:cache{index}")
    ov.save_model(network, target, compress_to_fp16=False)


def _choose_sequences(network: Any, ids: str, pairs: Mapping[str, str]) -> None:
    """Puts a Gather by `beam_idx` behind every input of the cache."""
    ov = openvino()
    from openvino import opset13 as ops

    batch = network.input(ids).get_partial_shape()[0]
    beam = ops.parameter(ov.PartialShape([batch]), ov.Type.i32, name=BEAM)
    beam.output(0).get_tensor().add_names({BEAM})
    network.add_parameters([beam])
    # a variable has one shape for what is read and what is written, which is longer by the new tokens
    open_shapes = {name: _with_open_axis(network.input(name).get_partial_shape()) for name in pairs}
    network.reshape({network.input(name): shape for name, shape in open_shapes.items()})
    for name in pairs:
        port = network.input(name)
        readers = port.get_target_inputs()
        chosen = ops.gather(port, beam, ops.constant(np.int32(0)))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    network.validate_nodes_and_infer_types()


def _with_open_axis(shape: Any) -> Any:
    """The shape of a cache (batch, heads, positions, head) of any number of positions."""
    ov = openvino()
    return ov.PartialShape([ov.Dimension() if axis == POSITIONS else size for axis, size in enumerate(shape)])


def _start_empty(network: Any, ids: str) -> None:
    """Gives every variable zeros of no positions as its first value, for as many sequences as there are ids."""
    from openvino import opset13 as ops

    zero = ops.constant(np.int64(0))
    batch = ops.gather(ops.shape_of(network.input(ids), output_type="i64"), ops.constant(np.array([0])), zero)
    for node in network.get_ops():
        if node.get_type_name() == "ReadValue":
            sizes = [size.get_min_length() for size in list(node.get_output_partial_shape(0))[1:]]
            shape = ops.concat([batch, ops.constant(np.array(sizes, np.int64))], 0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
    network.validate_nodes_and_infer_types()


class StatefulRunner(CompiledRunner):
    """A decoder with its cache inside. `run` puts a cache in and takes the grown one out, `follow` leaves it there."""

    def __init__(self, artifact: Artifact, host: frozenset[str]) -> None:
        super().__init__(artifact, host)
        self._pairs = {str(past): str(present) for past, present in dict(artifact.facts[CACHE]).items()}  # type: ignore[call-overload]  # JSON that `build` wrote
        self._logits = [name for name in self._outputs if name not in self._pairs.values()]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs behind the cache that the inputs have; raises DataError if they do not fit the model."""
        self._check(inputs)
        ov = openvino()
        states = {_pair_of(state.name, self._pairs): state for state in self._request.query_state()}
        for past, state in states.items():
            state.state = ov.Tensor(np.ascontiguousarray(inputs[past]))
        outputs = self.follow({name: array for name, array in inputs.items() if name not in self._pairs})
        return outputs | {self._pairs[past]: np.array(state.state.data) for past, state in states.items()}

    def layer_times(self, inputs: Arrays) -> list[LayerTime]:
        """None: OpenVINO profiles a request that begins with an empty cache, and the inputs are of a later step."""
        return []

    def forget(self) -> None:
        """Begins anew: an empty cache."""
        self._request.reset_state()

    def follow(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs of tokens behind those seen since `forget`, without the cache; raises DataError as `run`."""
        rows = len(next(iter(inputs.values())))
        feeds = {**inputs, BEAM: np.arange(rows, dtype=np.int32)}
        try:
            outputs = self._request.infer([feeds[name] for name in self._order], share_inputs=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"OpenVINO does not run these inputs: {first_lines(error)}") from error
        return {name: outputs[index].copy() for index, name in enumerate(self._logits)}


def _pair_of(variable: str, pairs: Mapping[str, str]) -> str:
    """The input of the cache that a variable is: its name is that of the input and of the output together."""
    return next(past for past, present in pairs.items() if variable == past + present)
