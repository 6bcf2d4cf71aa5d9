"""A decoder language model as PyTorch's exporter writes it: grouped-query attention with a cache of keys and values.

The graph takes `input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key` and `.value`, and gives
`logits` and `present.N.key` and `.value`, as Hugging Face's optimum names them. RMS normalization, rotary embedding and
the repetition of key heads are spelled out in operators of opset 18; embedding and head share one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import onnx_ir.tape

from compiler.errors import UsageError

IR_VERSION = 10
OPSET = 18
_HIDDEN = float(np.finfo(np.float32).min)
"""What a score becomes whose key must not be seen."""

Weights = Mapping[str, Callable[[], np.ndarray]]
"""Name of a weight → what computes it, a matrix as (inputs, outputs)."""


@dataclass(frozen=True)
class DecoderSize:
    """The size of a decoder.

    Args:
        layers: Count of blocks of attention and feed-forward.
        width: Length of the vector of a token.
        heads: Count of query heads.
        kv_heads: Count of heads of keys and values, a divisor of `heads`.
        hidden: Width of the feed-forward.
        vocabulary: Count of token ids.
        rope_base: Base of the rotary embedding's wavelengths.
        epsilon: Added to the mean square before its root.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    rope_base: float = 1e5
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads or self.head_width % 2:
            raise UsageError(f"heads must divide the width, and heads of keys and values the heads: {self}")

    @property
    def head_width(self) -> int:
        """Length of one head's vectors."""
        return self.width // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight, matrices as (inputs, outputs), the table as (vocabulary, width)."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.width)}
        keys = self.kv_heads * self.head_width
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            shapes |= {
                f"{layer}.input_layernorm.weight": (self.width,),
                f"{layer}.self_attn.q_proj.weight": (self.width, self.width),
                f"{layer}.self_attn.k_proj.weight": (self.width, keys),
                f"{layer}.self_attn.v_proj.weight": (self.width, keys),
                f"{layer}.self_attn.o_proj.weight": (self.width, self.width),
                f"{layer}.post_attention_layernorm.weight": (self.width,),
                f"{layer}.mlp.gate_proj.weight": (self.width, self.hidden),
                f"{layer}.mlp.up_proj.weight": (self.width, self.hidden),
                f"{layer}.mlp.down_proj.weight": (self.hidden, self.width),
            }
        return shapes | {"model.norm.weight": (self.width,)}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in float32."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())


def drawn_weights(size: DecoderSize, *, seed: int = 0) -> Weights:
    """Weights from fixed seeds, each drawn anew when it is asked for.

    Columns have scales of their own, a few inputs carry most of a product, as in trained networks: quantizers that look
    at neither are told from those that do.
    """
    named = enumerate(size.shapes.items())
    return {name: partial(_draw, shape, (seed, number)) for number, (name, shape) in named}


def _draw(shape: tuple[int, ...], seeds: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(seeds)
    if len(shape) == 1:
        return np.exp(random.normal(0, 0.5, shape)).astype(np.float32)
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(1 / math.sqrt(shape[0] if shape[0] < shape[1] * 16 else shape[1]))
    values *= np.exp(random.normal(0, 0.3, (1, shape[1]))).astype(np.float32)
    return values


def make_decoder(size: DecoderSize, weights: Weights) -> ir.Model:
    """The decoder; a weight is computed each time it is asked for, and not held in memory."""
    exporter = _Exporter(size, weights)
    graph = exporter.export()
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="fleetc make_language_model")


class _Exporter:
    """The graph so far; each node's name begins with the module that it belongs to."""

    def __init__(self, size: DecoderSize, weights: Weights) -> None:
        self.size, self.weights = size, weights
        self.tape = onnx_ir.tape.Tape()
        self.module = "model"
        self.table = self.weight("model.embed_tokens.weight")

    def export(self) -> ir.Graph:
        """The whole graph."""
        size = self.size
        ids, mask, positions = (
            ir.val(name, ir.DataType.INT64, ["batch", length])
            for name, length in (
                ("input_ids", "sequence"),
                ("attention_mask", "past + sequence"),
                ("position_ids", "sequence"),
            )
        )
        cache: list[int | str] = ["batch", size.kv_heads, "past", size.head_width]
        pasts = [
            ir.val(f"past_key_values.{number}.{kind}", ir.DataType.FLOAT, cache)
            for number in range(size.layers)
            for kind in ("key", "value")
        ]
        x = self.op("Gather", self.table, ids, axis=0)
        bias = self.mask_bias(ids, mask)
        turns = self.rotations(positions)
        presents: list[ir.Value] = []
        for number in range(size.layers):
            x, *of_block = self.block(x, number, bias, turns, pasts[2 * number : 2 * number + 2])
            presents += of_block
        self.module = "lm_head"
        x = self.normalize(x, "model.norm.weight")
        logits = self.op("MatMul", x, self.op("Transpose", self.table, perm=[1, 0]))
        self.name_output(logits, "logits", ["batch", "sequence", size.vocabulary])
        grown: list[int | str] = ["batch", size.kv_heads, "past + sequence", size.head_width]
        for number, present in enumerate(presents):
            self.name_output(present, f"present.{number // 2}.{('key', 'value')[number % 2]}", grown)
        return ir.Graph(
            [ids, mask, positions, *pasts],
            [logits, *presents],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET},
            name="decoder",
        )

    def op(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Add a node, and return its output."""
        name = f"/{self.module}/{op}_{len(self.tape.nodes)}"
        return self.tape.op(op, inputs, attributes, name=name, output=ir.val(f"{name}_output_0"))  # type: ignore[arg-type]

    def constant(self, value: object, kind: type = np.int64) -> ir.Value:
        """Add a Constant node."""
        return self.op("Constant", value=ir.tensor(np.array(value, kind)))

    def weight(self, name: str) -> ir.Value:
        """Add an initializer whose values are computed when somebody asks for them."""
        compute, shape = self.weights[name], self.size.shapes[name]
        lazy = ir.LazyTensor(lambda: ir.tensor(compute(), name=name), ir.DataType.FLOAT, ir.Shape(shape), name=name)
        return self.tape.initializer(lazy, name=name)

    @staticmethod
    def name_output(value: ir.Value, name: str, shape: list[int | str]) -> None:
        """Makes a value an output of the graph."""
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(shape)

    def length(self, x: ir.Value, axis: int) -> ir.Value:
        """The size of one dimension, as a scalar."""
        return self.op("Gather", self.op("Shape", x), self.constant(axis), axis=0)

    def mask_bias(self, ids: ir.Value, mask: ir.Value) -> ir.Value:
        """0 where a query may see a key, else a large negative number (batch, 1, sequence, past + sequence)."""
        total = self.length(mask, 1)
        first = self.op("Sub", total, self.length(ids, 1))
        columns = self.op("Range", self.constant(0), total, self.constant(1))
        rows = self.op("Unsqueeze", self.op("Range", first, total, self.constant(1)), self.constant([1]))
        causal = self.op("LessOrEqual", columns, rows)
        padding = self.op("Unsqueeze", self.op("Cast", mask, to=int(ir.DataType.BOOL)), self.constant([1, 2]))
        seen = self.op("And", causal, padding)
        return self.op("Where", seen, self.constant(0.0, np.float32), self.constant(_HIDDEN, np.float32))

    def rotations(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosine and sine of every position's angles (batch, 1, sequence, head)."""
        half = np.arange(0, self.size.head_width, 2, dtype=np.float32) / self.size.head_width
        frequencies = self.constant(self.size.rope_base**-half, np.float32)
        places = self.op("Unsqueeze", self.op("Cast", positions, to=int(ir.DataType.FLOAT)), self.constant([2]))
        angles = self.op("Mul", places, frequencies)
        both = self.op("Unsqueeze", self.op("Concat", angles, angles, axis=-1), self.constant([1]))
        return self.op("Cos", both), self.op("Sin", both)

    def rotate(self, x: ir.Value, turns: tuple[ir.Value, ir.Value]) -> ir.Value:
        """Rotary embedding: x · cos + (−second half, first half) · sin."""
        half, axis = self.size.head_width // 2, self.constant([3])
        first = self.op("Slice", x, self.constant([0]), self.constant([half]), axis)
        second = self.op("Slice", x, self.constant([half]), self.constant([2 * half]), axis)
        turned = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return self.op("Add", self.op("Mul", x, turns[0]), self.op("Mul", turned, turns[1]))

    def normalize(self, x: ir.Value, name: str) -> ir.Value:
        """Root mean square normalization over the last dimension."""
        square = self.op("Pow", x, self.constant(2.0, np.float32))
        mean = self.op("ReduceMean", square, self.constant([-1]))
        root = self.op("Sqrt", self.op("Add", mean, self.constant(self.size.epsilon, np.float32)))
        return self.op("Mul", self.weight(name), self.op("Mul", x, self.op("Reciprocal", root)))

    def heads_of(self, x: ir.Value, weight: str, heads: int) -> ir.Value:
        """A product cut into heads (batch, heads, sequence, head)."""
        product = self.op("MatMul", x, self.weight(weight))
        cut = self.op("Reshape", product, self.constant([0, 0, heads, self.size.head_width]))
        return self.op("Transpose", cut, perm=[0, 2, 1, 3])

    def repeat(self, x: ir.Value) -> ir.Value:
        """Each head of keys or values as often as query heads read it."""
        size = self.size
        times = size.heads // size.kv_heads
        if times == 1:
            return x
        batch, total = (self.op("Unsqueeze", self.length(x, axis), self.constant([0])) for axis in (0, 2))
        shape = [batch, self.constant([size.kv_heads, times]), total, self.constant([size.head_width])]
        wide = self.op("Expand", self.op("Unsqueeze", x, self.constant([2])), self.op("Concat", *shape, axis=0))
        flat = [batch, self.constant([size.heads]), total, self.constant([size.head_width])]
        return self.op("Reshape", wide, self.op("Concat", *flat, axis=0))

    def attend(
        self, x: ir.Value, layer: str, bias: ir.Value, turns: tuple[ir.Value, ir.Value], past: list[ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Attention of every token to those before it, and the grown keys and values."""
        size, name = self.size, f"{layer}.self_attn"
        query = self.rotate(self.heads_of(x, f"{name}.q_proj.weight", size.heads), turns)
        key = self.rotate(self.heads_of(x, f"{name}.k_proj.weight", size.kv_heads), turns)
        value = self.heads_of(x, f"{name}.v_proj.weight", size.kv_heads)
        key, value = (self.op("Concat", old, new, axis=2) for old, new in zip(past, (key, value), strict=True))
        turned = self.op("Transpose", self.repeat(key), perm=[0, 1, 3, 2])
        scale = self.constant(1 / math.sqrt(size.head_width), np.float32)
        scores = self.op("Add", self.op("Mul", self.op("MatMul", query, turned), scale), bias)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), self.repeat(value))
        joined = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.constant([0, 0, size.width]))
        return self.op("MatMul", joined, self.weight(f"{name}.o_proj.weight")), key, value

    def feed_forward(self, x: ir.Value, layer: str) -> ir.Value:
        """down(silu(gate(x)) · up(x))"""
        gate = self.op("MatMul", x, self.weight(f"{layer}.mlp.gate_proj.weight"))
        up = self.op("MatMul", x, self.weight(f"{layer}.mlp.up_proj.weight"))
        silu = self.op("Mul", gate, self.op("Sigmoid", gate))
        return self.op("MatMul", self.op("Mul", silu, up), self.weight(f"{layer}.mlp.down_proj.weight"))

    def block(
        self, x: ir.Value, number: int, bias: ir.Value, turns: tuple[ir.Value, ir.Value], past: list[ir.Value]
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Attention and feed-forward, each added to its input; the layer's grown cache beside."""
        layer = f"model.layers.{number}"
        self.module = layer.replace(".", "/")
        normal = self.normalize(x, f"{layer}.input_layernorm.weight")
        mixed, key, value = self.attend(normal, layer, bias, turns, past)
        x = self.op("Add", x, mixed)
        normal = self.normalize(x, f"{layer}.post_attention_layernorm.weight")
        return self.op("Add", x, self.feed_forward(normal, layer)), key, value
