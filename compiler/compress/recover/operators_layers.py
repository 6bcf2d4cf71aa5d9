"""Convolutions, pools and normalisations in PyTorch; see `operators`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
import torch.nn.functional as F

from compiler.compress.recover.operators import Operator, Tensor, refuse

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _conv(node: ir.Node, x: Tensor, weights: Tensor, bias: Tensor = None) -> Tensor:
    kernel = weights.shape[2:]
    strides, dilations = _ints(node, "strides", 1, len(kernel)), _ints(node, "dilations", 1, len(kernel))
    before, after = _pads(node, x.shape[2:], kernel, strides, dilations)
    if before != after:
        x, before = F.pad(x, spread(before, after)), [0] * len(kernel)
    groups = node.attributes.get_int("group", 1)
    return _CONVOLUTIONS[len(kernel)](x, weights, bias, strides, before, dilations, groups)


def _conv_transpose(node: ir.Node, x: Tensor, weights: Tensor, bias: Tensor = None) -> Tensor:
    rank, get = weights.dim() - 2, node.attributes
    before, after = _explicit_pads(node, rank)
    if before != after or get.get_ints("output_shape") or get.get_string("auto_pad", "NOTSET") != "NOTSET":
        refuse(node, "its padding is not the same on both sides")
    extra = _ints(node, "output_padding", 0, rank)
    strides, dilations = _ints(node, "strides", 1, rank), _ints(node, "dilations", 1, rank)
    groups = get.get_int("group", 1)
    return _TRANSPOSED[rank](x, weights, bias, strides, before, extra, groups, dilations)


def _max_pool(node: ir.Node, x: Tensor) -> Tensor:
    kernel, strides, before, after, ceil = _window(node, x)
    if len(node.outputs) > 1:
        refuse(node, "it gives indices")
    dilations = _ints(node, "dilations", 1, len(kernel))
    if before != after or any(2 * pad > size for pad, size in zip(before, kernel, strict=True)):
        x, before = F.pad(x, spread(before, after), value=float("-inf")), [0] * len(kernel)
    return _MAXIMA[len(kernel)](x, kernel, strides, before, dilations, ceil)


def _average_pool(node: ir.Node, x: Tensor) -> Tensor:
    kernel, strides, before, after, ceil = _window(node, x)
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    pool = _MEANS[len(kernel)]
    if any(size != 1 for size in _ints(node, "dilations", 1, len(kernel))):
        refuse(node, "its window is dilated")
    if before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, ceil, counted)
    pads = spread(before, after)
    inside = F.pad(torch.ones_like(x[:1, :1]), pads, value=float(counted))
    return pool(F.pad(x, pads), kernel, strides, 0, ceil) / pool(inside, kernel, strides, 0, ceil)


def _window(node: ir.Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], bool]:
    kernel = list(node.attributes.get_ints("kernel_shape", ()) or ())
    strides, dilations = _ints(node, "strides", 1, len(kernel)), _ints(node, "dilations", 1, len(kernel))
    before, after = _pads(node, x.shape[2:], kernel, strides, dilations)
    return kernel, strides, before, after, bool(node.attributes.get_int("ceil_mode", 0))


def _ints(node: ir.Node, name: str, default: int, rank: int) -> list[int]:
    return list(node.attributes.get_ints(name) or [default] * rank)


def _explicit_pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    pads = _ints(node, "pads", 0, 2 * rank)
    return pads[:rank], pads[rank:]


def _pads(
    node: ir.Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after every spatial axis, as given or as `auto_pad` works it out."""
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return _explicit_pads(node, len(kernel))
    spans = [(width - 1) * step + 1 for width, step in zip(kernel, dilations, strict=True)]
    totals = [
        max(0, (-(-size // stride) - 1) * stride + span - size)
        for size, stride, span in zip(sizes, strides, spans, strict=True)
    ]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def spread(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding as PyTorch wants it: pairs, the last axis first."""
    return [pad for pair in reversed([*zip(before, after, strict=True)]) for pad in pair]


def _batch_normalization(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.attributes.get_float("epsilon", 1e-5))


def _instance_normalization(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.attributes.get_float("epsilon", 1e-5))


def _layer_normalization(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor = None) -> Tensor:
    axis = node.attributes.get_int("axis", -1) % x.dim()
    if len(node.outputs) > 1:
        refuse(node, "it gives the mean")
    shape = x.shape[axis:]
    bias = bias if bias is None else bias.expand(shape)
    return F.layer_norm(x, shape, scale.expand(shape), bias, node.attributes.get_float("epsilon", 1e-5))


def _rms_normalization(node: ir.Node, x: Tensor, scale: Tensor) -> Tensor:
    shape = x.shape[node.attributes.get_int("axis", -1) % x.dim() :]
    return F.rms_norm(x, shape, scale.expand(shape), node.attributes.get_float("epsilon", 1e-5))


def _over_places(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


LAYERS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": lambda node, x: x.mean(_over_places(x), keepdim=True),
    "GlobalMaxPool": lambda node, x: x.amax(_over_places(x), keepdim=True),
    "InstanceNormalization": _instance_normalization,
    "LayerNormalization": _layer_normalization,
    "MaxPool": _max_pool,
    "RMSNormalization": _rms_normalization,
}
