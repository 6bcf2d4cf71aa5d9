"""What bench_pruning.py compares with: torch-pruning's magnitude method, and a plain loop of training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from bench_record import Figures
from pruning_subjects import Subject

from compiler.compress.prune.prepare import prepare
from compiler.compress.recover import Recipe
from compiler.compress.recover.network import OPERATORS, network_of, run
from compiler.compress.recover.samples import Samples, varied
from compiler.compress.recover.taps import FeatureTaps
from compiler.compress.recover.train import optimizer_of, set_rate

Tensor = Any


class Layers(torch.nn.Module):  # type: ignore[misc]  # PyTorch's types are not read
    """The network with its layers as PyTorch's own modules, which is what torch-pruning follows.

    Channels that a network pads with zeros are made by a 1 × 1 convolution that hands on the others, because
    torch-pruning takes padding for an operation that keeps the number of channels.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self._network = network_of(prepare(model))
        self._input = str(model.graph.inputs[0].name)
        self.layers = torch.nn.ModuleDict()
        for node in self._network.nodes:
            if (layer := self._layer(node)) is not None:
                self.layers[self._key(node)] = layer

    def forward(self, x: Tensor) -> Tensor:
        """The first output."""
        values = {**self._network.constants, **self._network.weights, self._input: x}
        for node in self._network.nodes:
            inputs = [None if value is None else values[str(value.name)] for value in node.inputs]
            layer = self.layers[self._key(node)] if self._key(node) in self.layers else None  # noqa: SIM401  it has no get
            found = layer(inputs[0]) if layer is not None else OPERATORS[node.op_type](node, *inputs)
            for value, one in zip(node.outputs, found if isinstance(found, tuple) else (found,), strict=False):
                values[str(value.name)] = one
        return values[self._network.outputs[0]]

    def last(self) -> Tensor:
        """The layer that makes the output: its width stays."""
        return [layer for layer in self.layers.values() if isinstance(layer, torch.nn.Linear)][-1]

    def macs(self, x: Tensor) -> int:
        """Multiply-accumulates of its layers, without those that stand for padding."""
        total = 0

        def count(layer: Tensor, inputs: Tensor, output: Tensor) -> None:
            nonlocal total
            total += int(output.numel() * layer.weight[0].numel()) if layer.weight.requires_grad else 0

        hooks = [layer.register_forward_hook(count) for layer in self.layers.values() if hasattr(layer, "weight")]
        with torch.no_grad():
            self(x)
        for hook in hooks:
            hook.remove()
        return total

    @staticmethod
    def _key(node: ir.Node) -> str:
        return str(node.outputs[0].name).replace(".", "_")

    def _layer(self, node: ir.Node) -> Tensor:
        weights = (
            self._network.weights.get(str(node.inputs[1].name)) if len(node.inputs) > 1 and node.inputs[1] else None
        )
        bias = self._network.weights.get(str(node.inputs[2].name)) if len(node.inputs) > 2 and node.inputs[2] else None
        if node.op_type == "Conv" and weights is not None:
            get, shape = node.attributes, weights.shape
            groups, pads = get.get_int("group", 1), list(get.get_ints("pads", (0, 0, 0, 0)))
            strides = tuple(get.get_ints("strides", (1, 1)))
            options = {"stride": strides, "padding": tuple(pads[:2]), "groups": groups, "bias": bias is not None}
            conv = torch.nn.Conv2d(shape[1] * groups, shape[0], tuple(shape[2:]), **options)
            return _filled(conv, weights, bias) if pads[:2] == pads[2:] else None
        if node.op_type == "MatMul" and weights is not None:
            return _filled(torch.nn.Linear(*weights.shape, bias=False), weights.t(), None)
        if node.op_type == "Reshape" and any(user.op_type in ("MatMul", "Gemm") for user, _ in node.outputs[0].uses()):
            return torch.nn.Flatten()  # whatever width is left
        if node.op_type == "Pad" and (wide := _channels(node)) is not None:
            narrow, more = wide
            pad = torch.nn.Conv2d(narrow, narrow + more, 1, bias=False)
            pad.weight.requires_grad_(False)
            return _filled(pad, torch.eye(narrow + more, narrow)[:, :, None, None], None)
        return None


def _filled(layer: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    layer.weight.data = weights.clone()
    if bias is not None:
        layer.bias.data = bias.clone()
    return layer


def _channels(node: ir.Node) -> tuple[int, int] | None:
    """Channels that a Pad reads and adds at the end; None if it pads anything else."""
    pads, shape = node.inputs[1], node.inputs[0].shape if node.inputs[0] else None
    if pads is None or pads.const_value is None or shape is None:
        return None
    given = pads.const_value.numpy().tolist()
    others = [pad for place, pad in enumerate(given) if place != len(given) // 2 + 1]
    return None if any(others) or not isinstance(shape[1], int) else (shape[1], given[len(given) // 2 + 1])


def magnitude(subject: Subject, ratio: float) -> Figures:
    """torch-pruning's magnitude method at the share of channels that saves about this share of the work, unrepaired."""
    try:
        import torch_pruning
    except ImportError:
        return {"unavailable": "pip install torch-pruning"}
    x = torch.from_numpy(subject.own[:1])
    low, high, found = 0.0, 0.9, None
    for _ in range(6):  # the share of channels is halved in on: widths are rounded, so more steps change nothing
        share = (low + high) / 2
        network = Layers(subject.model)
        whole = network.macs(x)
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[network.last()],
            round_to=8,
        )
        pruner.step()
        saved = 1 - network.macs(x) / whole
        if found is None or abs(saved - ratio) < abs(found[0] - ratio):
            found = (saved, network, share)
        low, high = (share, high) if saved < ratio else (low, share)
    assert found is not None  # noqa: S101  # the loop ran
    saved, network, share = found
    with torch.no_grad():
        outputs = [network(torch.from_numpy(part)) for part in np.array_split(subject.judged, 10)]
    return {"macs_saved": round(saved, 4), "channels_cut": round(share, 3), **subject.judge(torch.cat(outputs).numpy())}


def plain_loop(subject: Subject, pruned: ir.Model, samples: Samples, taps: FeatureTaps, recipe: Recipe) -> Figures:
    """Eager float32, everything in one thread of Python: vary, ask the teacher, step; the same loss and data.

    Returns:
        Samples per second of its steps, and the error of the outputs on the data at `recipe.checks` times.
    """
    teacher, student = network_of(prepare(subject.model)), network_of(prepare(pruned))
    for tensor in student.weights.values():
        tensor.requires_grad_(True)
    optimizer = optimizer_of(student)
    places = {name: torch.from_numpy(channels) for name, channels in taps.items()}
    began, busy, step, checks = time.monotonic(), 0.0, 0, list[dict[str, float]]()
    while (elapsed := time.monotonic() - began) < recipe.seconds:
        if int(elapsed / recipe.seconds * recipe.checks) >= len(checks):
            checks.append({"elapsed_s": round(elapsed, 1), "error": _error(teacher, student, samples)})
        started = time.monotonic()
        set_rate(optimizer, recipe, step, elapsed)
        inputs = varied(samples, recipe.batch, seed=(recipe.seed, step))
        with torch.no_grad():
            given = run(teacher, inputs, taps=[*taps])
        wanted = {name: v.index_select(1, places[name]) if name in places else v for name, v in given.items()}
        optimizer.zero_grad()
        _loss(run(student, inputs, taps=[*taps]), wanted, places, recipe).backward()
        optimizer.step()
        busy, step = busy + time.monotonic() - started, step + 1
    checks.append({"elapsed_s": round(elapsed, 1), "error": _error(teacher, student, samples)})
    return {"steps": step, "samples_per_s": round(recipe.batch * step / max(busy, 1e-9), 2), "checks": checks}


def _loss(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], taps: Mapping[str, Tensor], recipe: Recipe
) -> Tensor:
    errors = {name: (found[name] - v).square().sum() / (v.square().sum() + 1e-12) for name, v in wanted.items()}
    outside = torch.stack([error for name, error in errors.items() if name not in taps]).mean()
    inside = [error for name, error in errors.items() if name in taps]
    return outside + recipe.tap_weight * torch.stack(inside).mean() if inside else outside


def _error(teacher: Tensor, student: Tensor, samples: Samples) -> float:
    inputs = samples.take(range(min(64, samples.count)))
    with torch.no_grad():
        wanted, found = run(teacher, inputs), run(student, inputs)
    wrong = sum(float((found[name] - v).square().sum()) for name, v in wanted.items())
    return wrong / sum(float(v.square().sum()) for v in wanted.values())
