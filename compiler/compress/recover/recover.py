"""The whole of it: original and pruned model in, recovered model out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compiler.compress.prune.moments import Batches
from compiler.compress.prune.prepare import prepare
from compiler.compress.recover.batch import batch_of, with_free_batch
from compiler.compress.recover.recipe import Check, Recipe, Recovered
from compiler.compress.recover.taps import FeatureTaps
from compiler.errors import TargetUnavailable, UnsupportedModel
from compiler.model.graph import graph_digest
from compiler.model.numerics import TOLERANCES, compare_all
from compiler.passes.probe import run_unoptimized

if TYPE_CHECKING:
    from compiler.compress.recover.checkpoint import State
    from compiler.compress.recover.execution import ExecutionConfig
    from compiler.compress.recover.network import Network
    from compiler.compress.recover.samples import Samples
    from compiler.compress.recover.train import DistillationSetup

Metric = Callable[[ir.Model], float]
"""What a model is worth, higher is better: the share that a gate judges, for instance."""


def check_torch() -> None:
    """Raises TargetUnavailable if PyTorch is not installed."""
    if find_spec("torch") is None:
        raise TargetUnavailable("recovery needs PyTorch, which is not installed", remedy="pip install 'fleetc[train]'")


def recover(
    original: ir.Model,
    pruned: ir.Model,
    batches: Batches,
    *,
    folder: Path,
    recipe: Recipe,
    taps: FeatureTaps,
    metric: Metric | None = None,
    enough: float = float("inf"),
) -> Recovered:
    """Trains the pruned model to give what the original gives on the samples and on variations of them.

    A run that was killed goes on from its last checkpoint in `folder`; one of other models, data or recipe does not.

    Args:
        original: The float border model.
        pruned: The same without some channels; left as it is.
        batches: Unlabelled samples.
        folder: Where samples and checkpoints lie.
        recipe: Time, steps and the rest.
        taps: Values inside that are compared, too; from `choose_taps`, or none.
        metric: Decides which weights are best and when to stop; None: the error of the outputs on the samples, negated.
        enough: The metric that ends it early.

    Raises:
        TargetUnavailable: PyTorch is not installed.
        UnsupportedModel: The models cannot be computed in PyTorch; the operators are named.
        DataError: There are no samples.
        StorageError: The disk is full, or the checkpoint cannot be read.
    """
    check_torch()
    import torch

    from compiler.compress.recover.checkpoint import save_state
    from compiler.compress.recover.network import with_weights
    from compiler.compress.recover.train import Progress, relative_error, train

    began, cores = time.monotonic(), torch.get_num_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = prepare(pruned)
    with ThreadPoolExecutor(cores, thread_name_prefix="parts") as pool:
        setup = _setup(prepare(original), small, batches, folder, recipe, taps, device, pool)
        key = _key(original, pruned, setup.samples.digest, recipe, taps)
        way, state = _begin(setup, small, folder, key, device)
        resumed_at = state.step

        def value() -> float:
            if metric is None:
                return -relative_error(setup, way)
            return metric(with_weights(small, setup.student.weights))

        progress = Progress(state, lambda now: save_state(now, folder, key=key), value, enough, began)
        try:
            stopped = train(setup, way, progress)
        finally:
            torch.set_num_threads(cores)
    return Recovered(
        model=with_weights(small, state.best),
        steps=state.step,
        seconds=round(state.elapsed_s, 2),
        samples_per_s=recipe.batch * state.step / max(state.busy_s, 1e-9),
        way=str(way),
        checks=tuple(Check(*check) for check in state.checks),
        stopped=stopped,
        resumed_at=resumed_at,
    )


def _setup(
    original: ir.Model,
    small: ir.Model,
    batches: Batches,
    folder: Path,
    recipe: Recipe,
    taps: FeatureTaps,
    device: str,
    pool: Executor,
) -> DistillationSetup:
    import torch

    from compiler.compress.recover.network import network_of
    from compiler.compress.recover.samples import gather
    from compiler.compress.recover.train import DistillationSetup

    teacher, student = (network_of(with_free_batch(model), device=device) for model in (original, small))
    samples = gather(batches(), folder)
    for network, model in ((teacher, original), (student, small)):
        _agree(network, model, samples, device)
    for tensor in student.weights.values():
        tensor.requires_grad_(True)
    channels = {name: torch.from_numpy(places).to(device) for name, places in taps.items()}
    return DistillationSetup(teacher, student, channels, samples, recipe, pool)


def _begin(
    setup: DistillationSetup, small: ir.Model, folder: Path, key: str, device: str
) -> tuple[ExecutionConfig, State]:
    """Where to go on from: the checkpoint, or the beginning with the way that is fastest here."""
    from compiler.compress.recover.checkpoint import State, load_state
    from compiler.compress.recover.execution import ExecutionConfig, segments_for
    from compiler.compress.recover.train import find_way

    segments = segments_for(with_free_batch(small), batch=setup.recipe.batch, memory_bytes=setup.recipe.memory_bytes)
    state = load_state(folder, key=key)
    if state is None:
        way = find_way(setup, device=device, segments=segments)
        return way, State(
            0, 0.0, 0.0, (way.dtype, way.is_channels_last, way.parts, way.threads), dict(setup.student.weights)
        )
    for name, tensor in setup.student.weights.items():
        tensor.data.copy_(state.weights[name])
    state.weights = dict(setup.student.weights)
    dtype, is_channels_last, parts, threads = state.way
    return ExecutionConfig(dtype, is_channels_last, segments, device, parts, threads), state


def _agree(network: Network, model: ir.Model, samples: Samples, device: str) -> None:
    """Holds PyTorch's outputs on several samples at once against ONNX Runtime's on as many as the model takes."""
    from compiler.compress.recover.network import run

    size = batch_of(model) or 1
    some = samples.take(place % samples.count for place in range(2 * size))
    parts = [
        run_unoptimized(model, {name: tensor[at : at + size].numpy() for name, tensor in some.items()})
        for at in (0, size)
    ]
    wanted = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
    try:
        found = run(network, {name: tensor.to(device) for name, tensor in some.items()})
    except RuntimeError as error:
        raise UnsupportedModel(
            f"PyTorch cannot compute the model on {2 * size} samples at once: {str(error).splitlines()[0]}",
            remedy="Give the device a range of batches (`batch: {min: 1, opt: 1, max: 8}`), or leave recovery out.",
        ) from error
    stats = compare_all(wanted, {name: tensor.detach().cpu().numpy() for name, tensor in found.items()})
    for name, one in stats.items():
        if not TOLERANCES["fp32"].accepts(one):
            raise UnsupportedModel(
                f"PyTorch computes output '{name}' otherwise than ONNX Runtime ({one.sqnr_db:.0f} dB)",
                remedy="Build without recovery, and report this: an operator of compiler/recover is at fault.",
            )


def _key(original: ir.Model, pruned: ir.Model, samples: str, recipe: Recipe, taps: FeatureTaps) -> str:
    """All that a checkpoint belongs to."""
    inside = [(name, places.tolist()) for name, places in taps.items()]
    parts = [graph_digest(original), graph_digest(pruned), samples, recipe, inside, version("torch")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
