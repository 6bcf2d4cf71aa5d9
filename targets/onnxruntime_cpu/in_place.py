"""A decoder whose cache lies in buffers of the whole context: new keys and values are written there, nothing is copied.

GroupQueryAttention writes in place where the old cache and the grown one are the same memory, and takes the length from
its inputs. Elsewhere the cache is copied at every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.target import Array, Arrays, DataError, Range, find_decoder, is_decoder, onnx_runtime_errors
from targets.onnxruntime_cpu.session import SessionRunner

if TYPE_CHECKING:  # a process that answers prompts needs no graph library
    import onnx_ir as ir

LOGITS_FROM = "logits_from"
"""Input of a delivered decoder: the first new token whose logits are computed; -1 is the last one."""

CACHE = "cache in place"
"""Fact of an artifact: how its cache may be held."""


@dataclass(frozen=True)
class CacheInPlace:
    """Which inputs and outputs are the same memory.

    Args:
        pairs: Input of the cache → output that holds it grown.
        positions: Tokens that the buffers are for.
    """

    pairs: Mapping[str, str]
    positions: int


def find_cache(model: ir.Model, dims: Mapping[str, Range]) -> CacheInPlace | None:
    """The cache of a decoder; None where something else reads it than attention that may write in place.

    Args:
        model: As it is delivered.
        dims: Sizes of its dimensions that are ranges.
    """
    decoder = find_decoder(model) if is_decoder(model) else None
    if decoder is None or decoder.past not in dims:
        return None
    inputs = {str(value.name): value for value in model.graph.inputs}
    readers = [node for pair in decoder.pairs for node, _ in inputs[pair.past].uses()]
    if len(readers) != len(decoder.pairs) or {node.op_type for node in readers} != {"GroupQueryAttention"}:
        return None
    return CacheInPlace({pair.past: pair.present for pair in decoder.pairs}, dims[decoder.past].max + 1)


class DecoderRunner(SessionRunner):
    """A decoder. `run` takes a cache and gives the grown one; `follow` writes it in place, with logits of one token."""

    def __init__(self, model: Path, config: Path, note: str, cache: CacheInPlace) -> None:
        super().__init__(model, config, note)
        self._cache = cache
        self._buffers: dict[str, Any] = {}
        with_defaults = {value.name for value in self._session.get_overridable_initializers()}
        self._selects = LOGITS_FROM in with_defaults

    def forget(self) -> None:
        """Begins anew, with an empty cache."""
        import onnxruntime as ort

        if not self._buffers:
            shapes = {spec.name: spec.shape for spec in self.inputs}
            for past in self._cache.pairs:
                batch, heads, _, size = (size if isinstance(size, int) else 1 for size in shapes[past])
                empty = np.zeros((batch, heads, self._cache.positions, size), np.float32)
                self._buffers[past] = ort.OrtValue.ortvalue_from_numpy(empty)

    def follow(self, inputs: Arrays) -> dict[str, Array]:
        """Executes tokens behind those seen since `forget`; neither inputs nor outputs have the cache.

        Logits are the last token's alone where the model has `logits_from`.

        Raises:
            DataError: There are more tokens than the cache has places for.
        """
        import onnxruntime as ort

        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        if self._selects:  # as an OrtValue: bind_cpu_input knows no inputs that have defaults
            binding.bind_ortvalue_input(LOGITS_FROM, ort.OrtValue.ortvalue_from_numpy(np.array([-1])))
        for past, present in self._cache.pairs.items():
            binding.bind_ortvalue_input(past, self._buffers[past])
            binding.bind_ortvalue_output(present, self._buffers[past])
        names = [name for name in self._names if name not in self._cache.pairs.values()]
        for name in names:
            binding.bind_output(name)
        with onnx_runtime_errors("does not run these inputs", raises=DataError):
            self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        order = [*self._cache.pairs.values(), *names]
        return {name: value.numpy() for name, value in zip(order, outputs, strict=True) if name in names}
