"""The quantization plan: format and scale of each tensor, which layers stay float, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TensorQuant:
    """One tensor in few bits: value = (integer − zero_point) × scale.

    Args:
        dtype: ONNX element type in lower case.
        scale: One number; one per channel of `axis`; or, with blocks, flattened, of the weight's shape with `axis`
            divided by `block_size`.
        zero_point: 0 where symmetric, unless `dtype` is unsigned and values are negative too.
        axis: The dimension of the channels or blocks; None: one scale for all.
        block_size: Elements along `axis` that share a scale; 0: no blocks.
        narrow: Whether the lowest integer is left out.
        reason: How the scale was chosen.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int | None = None
    block_size: int = 0
    narrow: bool = False
    reason: str = ""

    def __str__(self) -> str:
        low, high = min(self.scale), max(self.scale)
        scale = f"scale {low:.4g}" if low == high else f"{len(self.scale)} scales {low:.3g} to {high:.3g}"
        zero = f", zero point {self.zero_point}" if self.zero_point else ""
        return f"{self.dtype}, {scale}{zero}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class LayerQuant:
    """How one node is computed.

    Args:
        node: Its name.
        op: Its operator.
        precision: The scheme's name of few bits (`int8`), or `float`.
        reason: Why.
        is_passing: Whether it only passes quantized values on, like MaxPool.
    """

    node: str
    op: str
    precision: str
    reason: str
    is_passing: bool = False


@dataclass(frozen=True)
class QuantPlan:
    """All decisions; `apply` only carries them out.

    Args:
        scheme: Name of the scheme.
        layers: Every node of the main graph that has work to quantize, in graph order.
        tensors: Name of a value computed at run time → its format.
        weights: `node/index` → the format of that constant input.
        reads: Node → indices of its inputs that it reads dequantized.
        int_biases: Nodes whose bias (input 2) becomes int32.
        opset: Version of the default domain that the formats need.
        compute: Precision of what is not quantized: `fp32`, `fp16` or `bf16`.
        notes: Remarks for the reader of the plan.
    """

    scheme: str
    layers: tuple[LayerQuant, ...]
    tensors: Mapping[str, TensorQuant]
    weights: Mapping[str, TensorQuant]
    reads: Mapping[str, tuple[int, ...]]
    int_biases: tuple[str, ...] = ()
    opset: int = 13
    compute: str = "fp32"
    notes: tuple[str, ...] = field(default=())

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the nodes that run in few bits."""
        return tuple(layer.node for layer in self.layers if layer.precision != "float")

    def __str__(self) -> str:
        low = self.quantized
        lines = [f"{self.scheme}: {len(low)} of {len(self.layers)} layers quantized"]
        lines += [f"  {layer.node} ({layer.op}): {layer.precision}, {layer.reason}" for layer in self.layers]
        lines += [f"  {name}: {tensor}" for name, tensor in {**self.tensors, **self.weights}.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready value; `plan_from_dict` reads it back."""
        return asdict(self)


def plan_from_dict(data: Mapping[str, Any]) -> QuantPlan:
    """The plan that `QuantPlan.to_dict` wrote, also after it has been JSON."""
    return QuantPlan(
        scheme=data["scheme"],
        layers=tuple(LayerQuant(**layer) for layer in data["layers"]),
        tensors={name: _tensor(tensor) for name, tensor in data["tensors"].items()},
        weights={name: _tensor(tensor) for name, tensor in data["weights"].items()},
        reads={node: tuple(indices) for node, indices in data["reads"].items()},
        int_biases=tuple(data["int_biases"]),
        opset=data["opset"],
        compute=data["compute"],
        notes=tuple(data["notes"]),
    )


def _tensor(data: Mapping[str, Any]) -> TensorQuant:
    return TensorQuant(**{**data, "scale": tuple(data["scale"])})
