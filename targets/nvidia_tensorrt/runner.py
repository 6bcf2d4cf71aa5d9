"""An engine opened on this machine's GPU: numpy arrays in, numpy arrays out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from compiler.target import Array, Arrays, Artifact, DataError, Evidence, TensorSpec, ToolchainFailed
from targets.nvidia_tensorrt.cuda import Device, Memory
from targets.nvidia_tensorrt.network import MODULES, recorder
from targets.nvidia_tensorrt.signature import Signature, agree, engine_signature


def read_engine(path: Path, library: str, device: Device) -> Signature:
    """What an engine says it takes and gives.

    Raises:
        ToolchainFailed: The engine cannot be opened on that GPU.
    """
    memory = Memory(device)
    try:
        return engine_signature(_open(path, library, recorder(library)))
    finally:
        memory.close()


class EngineRunner:
    """Runs an engine; each run allocates, copies, executes and copies back.

    Raises:
        ToolchainFailed: The engine cannot be opened, or differs from what the artifact says.
    """

    evidence = Evidence.HOST

    def __init__(self, artifact: Artifact, library: str, device: Device) -> None:
        self._artifact, self._memory, self._log = artifact, Memory(device), recorder(library)
        self._engine = _open(artifact.root / artifact.files[0], library, self._log)
        agree(Signature(artifact.inputs, artifact.outputs), engine_signature(self._engine), source="engine")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise ToolchainFailed(f"TensorRT gives no execution context; the end of its log:\n{self._log.tail()}")

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Executes the engine once.

        Raises:
            DataError: An input is missing, of another type, or its shape is outside the engine's ranges.
            ToolchainFailed: The execution fails.
        """
        arrays = [_fitting(spec, inputs) for spec in self._artifact.inputs]
        for spec, array in zip(self._artifact.inputs, arrays, strict=True):
            if not self._context.set_input_shape(spec.name, array.shape):
                raise DataError(f"the engine does not take {array.shape}", where=f"input '{spec.name}'")
        with self._buffers(arrays) as (outputs, addresses):
            if not self._context.execute_async_v3(self._memory.stream):
                raise ToolchainFailed(f"TensorRT's execution failed; the end of its log:\n{self._log.tail()}")
            self._memory.wait()
            for name, array in outputs.items():
                self._memory.download(addresses[name], array)
        return outputs

    def close(self) -> None:
        """Frees the engine before the memory it lives in."""
        del self._context, self._engine
        self._memory.close()

    @contextmanager
    def _buffers(self, arrays: list[Array]) -> Iterator[tuple[dict[str, Array], dict[str, int]]]:
        """Inputs on the GPU, and room for the outputs at the sizes that the inputs' shapes give them."""
        outputs = {spec.name: self._room(spec) for spec in self._artifact.outputs}
        addresses: dict[str, int] = {}
        try:
            for spec, array in zip(self._artifact.inputs, arrays, strict=True):
                addresses[spec.name] = self._memory.upload(array)
            for name, array in outputs.items():
                addresses[name] = self._memory.allocate(array.nbytes)
            for name, address in addresses.items():
                self._context.set_tensor_address(name, address)
            yield outputs, addresses
        finally:
            for address in addresses.values():
                self._memory.free(address)

    def _room(self, spec: TensorSpec) -> Array:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if min(shape, default=0) < 0:
            raise ToolchainFailed(f"the shape of output '{spec.name}' depends on values, not on shapes: {shape}")
        return np.empty(shape, dtype=_dtype(spec))


def _open(path: Path, library: str, log: Any) -> Any:
    trt = import_module(MODULES[library])
    engine = trt.Runtime(log).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ToolchainFailed(f"TensorRT does not open the engine; the end of its log:\n{log.tail()}")
    return engine


def _fitting(spec: TensorSpec, inputs: Arrays) -> Array:
    array = inputs.get(spec.name)
    if array is None or array.dtype != _dtype(spec) or array.ndim != len(spec.shape):
        actual = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise DataError(f"expected {spec.dtype}{list(spec.shape)}, got {actual}", where=f"input '{spec.name}'")
    return np.ascontiguousarray(array)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, spec.dtype, spec.dtype))
