"""Operators that move, join and split tensors, in PyTorch; see `operators`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

import onnx_ir as ir
import torch
import torch.nn.functional as F

from compiler.compress.recover.operators import Operator, Tensor, integers, refuse
from compiler.compress.recover.operators_layers import spread

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    sizes, keeps = integers(shape), not node.attributes.get_int("allowzero", 0)
    return x.reshape([x.shape[axis] if size == 0 and keeps else size for axis, size in enumerate(sizes)])


def _flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = node.attributes.get_int("axis", 1)
    rows = x.shape[:axis].numel() if axis else 1
    return x.reshape(rows, -1)


def _transpose(node: ir.Node, x: Tensor) -> Tensor:
    return x.permute(*(node.attributes.get_ints("perm") or reversed(range(x.dim()))))


def _axes(node: ir.Node, axes: Tensor) -> list[int]:
    return integers(axes) if axes is not None else list(node.attributes.get_ints("axes", ()) or ())


def _squeeze(node: ir.Node, x: Tensor, axes: Tensor = None) -> Tensor:
    listed = _axes(node, axes)
    return x.squeeze(tuple(listed)) if listed else x.squeeze()


def _unsqueeze(node: ir.Node, x: Tensor, axes: Tensor = None) -> Tensor:
    listed = _axes(node, axes)
    for axis in sorted(axis % (x.dim() + len(listed)) for axis in listed):
        x = x.unsqueeze(axis)
    return x


def _concat(node: ir.Node, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, dim=node.attributes.get_int("axis", 0))


def _split(node: ir.Node, x: Tensor, sizes: Tensor = None) -> Tensor:
    axis = node.attributes.get_int("axis", 0)
    listed = integers(sizes) if sizes is not None else list(node.attributes.get_ints("split", ()) or ())
    parts = torch.split(x, listed or -(-x.shape[axis] // len(node.outputs)), dim=axis)
    return tuple(parts) if len(parts) > 1 else parts[0]


def _slice(node: ir.Node, x: Tensor, *bounds: Tensor) -> Tensor:
    if not bounds:
        bounds = tuple(
            torch.tensor(node.attributes.get_ints(name)) if node.attributes.get_ints(name) else None
            for name in ("starts", "ends", "axes")
        )
    starts, ends, axes, steps = (*bounds, None, None)[:4]
    where = integers(axes) if axes is not None else range(starts.numel())
    by = integers(steps) if steps is not None else repeat(1)
    for axis, start, end, step in zip(where, integers(starts), integers(ends), by, strict=False):
        taken = range(*slice(start, end, step).indices(x.shape[axis]))
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(taken.start, taken.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


def _pad(node: ir.Node, x: Tensor, pads: Tensor = None, value: Tensor = None, axes: Tensor = None) -> Tensor:
    get = node.attributes
    mode = get.get_string("mode", "constant")
    listed = integers(pads) if pads is not None else list(get.get_ints("pads", ()) or ())
    before, after = [0] * x.dim(), [0] * x.dim()
    places = integers(axes) if axes is not None else range(x.dim())
    for place, axis in enumerate(places):
        before[axis], after[axis] = listed[place], listed[len(listed) // 2 + place]
    number = get.get_float("value", 0.0) if value is None else value.item()
    if mode == "constant":
        return F.pad(x, spread(before, after), value=number)
    still = next((axis for axis in range(x.dim()) if before[axis] or after[axis]), x.dim())
    if still < 1 or mode not in _PAD_MODES:
        refuse(node, f"it pads the first axis, or by '{mode}'")
    moving = spread(before[still:], after[still:])
    flat = x.reshape(1, -1, *x.shape[still:])  # modes other than constant want (N, C, places)
    padded = F.pad(flat, moving, mode=_PAD_MODES[mode])
    return padded.reshape(*x.shape[:still], *padded.shape[2:])


def _expand(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


def _gather(node: ir.Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.attributes.get_int("axis", 0) % x.dim()
    size = x.shape[axis]
    flat = torch.where(index < 0, index + size, index).reshape(-1)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, flat).reshape(shape)


def _gather_elements(node: ir.Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.attributes.get_int("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _shape(node: ir.Node, x: Tensor) -> Tensor:
    end = node.attributes.get_int("end", x.dim())
    return torch.tensor(list(x.shape)[node.attributes.get_int("start", 0) : end], dtype=torch.int64)


def _depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    size = node.attributes.get_int("blocksize", 1)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    blocks = x.reshape(n, size, size, c // size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // size**2, h * size, w * size)


def _resize(node: ir.Node, x: Tensor, region: Tensor = None, scales: Tensor = None, sizes: Tensor = None) -> Tensor:
    get = node.attributes
    method = get.get_string("mode", "nearest"), get.get_string("coordinate_transformation_mode", "half_pixel")
    rank = x.dim() - 2
    if sizes is None:
        sizes = [int(size * scale) for size, scale in zip(x.shape, scales.tolist(), strict=True)]
    places = list(sizes if isinstance(sizes, list) else integers(sizes))[2:]
    if method == ("nearest", "asymmetric") and get.get_string("nearest_mode", "round_prefer_floor") == "floor":
        return F.interpolate(x, size=places, mode="nearest")
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    if method in (("linear", "half_pixel"), ("linear", "pytorch_half_pixel")):
        return F.interpolate(x, size=places, mode=smooth, align_corners=False)
    if method == ("linear", "align_corners"):
        return F.interpolate(x, size=places, mode=smooth, align_corners=True)
    return refuse(node, f"it resizes by {method[0]} with coordinates '{method[1]}'")


MOVEMENT: Mapping[str, Operator] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda node, x, repeats: x.repeat(*integers(repeats)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
