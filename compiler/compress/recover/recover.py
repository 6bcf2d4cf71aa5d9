"""Entry point: from the original and the pruned model to the recovered one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compiler.artifact.schema import Check
from compiler.compress.prune.moments import Batches
from compiler.compress.prune.prepare import prepare
from compiler.compress.recover.batch import batch_of, with_free_batch
from compiler.compress.recover.recipe import Recipe, Recovered
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


@dataclass(frozen=True)
class Pair:
    """The two models of a distillation.

    Args:
        original: The float border model, the teacher.
        pruned: The same without some channels, the student; left as it is.
        taps: Values inside that are compared, too; from `choose_taps`, or none.
    """

    original: ir.Model
    pruned: ir.Model
    taps: FeatureTaps = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """How the student is judged while it learns.

    Args:
        metric: Decides which weights are best and when to stop; None: the error of the outputs on the samples, negated.
        enough: The metric that ends it early.
    """

    metric: Metric | None = None
    enough: float = float("inf")


def check_torch() -> None:
    """Raises TargetUnavailable if PyTorch is not installed."""
    if find_spec("torch") is None:
        raise TargetUnavailable("recovery needs PyTorch, which is not installed", remedy="pip install 'fleetc[train]'")


def recover(pair: Pair, batches: Batches, *, folder: Path, recipe: Recipe, goal: Goal | None = None) -> Recovered:
    """Trains the pruned model to give what the original gives on the samples and on variations of them.

    A run that was killed goes on from its last checkpoint in `folder`; one of other models, data or recipe does not.

    Args:
        pair: Original and pruned model.
        batches: Unlabelled samples.
        folder: Where samples and checkpoints lie.
        recipe: Time, steps and the rest.
        goal: The metric and when it is good enough; the error of the outputs if None.

    Raises:
        TargetUnavailable: PyTorch is not installed.
        UnsupportedModel: The models cannot be computed in PyTorch; the operators are named.
        DataError: There are no samples.
        StorageError: The disk is full, or the checkpoint cannot be read.
    """
    check_torch()
    import torch

    began, cores = time.monotonic(), torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, thread_name_prefix="parts") as pool:
            training = _prepare_training(pair, batches, folder, recipe, pool)
            return _train(training, goal or Goal(), began)
    finally:
        # a step sets the number of threads for its share of the cores, and PyTorch keeps it for the whole process
        torch.set_num_threads(cores)


@dataclass(frozen=True)
class _Training:
    """A distillation that is ready to begin or to go on.

    Args:
        setup: Networks, samples and recipe.
        student: The pruned model that the student's network was made of.
        config: How a step is computed.
        state: Where it stands.
        save: Writes the state to disk.
    """

    setup: DistillationSetup
    student: ir.Model
    config: ExecutionConfig
    state: State
    save: Callable[[State], None]


def _prepare_training(pair: Pair, batches: Batches, folder: Path, recipe: Recipe, pool: Executor) -> _Training:
    import torch

    from compiler.compress.recover.checkpoint import save_state
    from compiler.compress.recover.samples import gather

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepared = Pair(prepare(pair.original), prepare(pair.pruned), pair.taps)
    setup = _setup(prepared, gather(batches(), folder), recipe, device, pool)
    key = _key(pair, setup.samples.digest, recipe)
    config, state = _begin(setup, prepared.pruned, folder, key, device)
    return _Training(setup, prepared.pruned, config, state, lambda now: save_state(now, folder, key=key))


def _train(training: _Training, goal: Goal, began: float) -> Recovered:
    from compiler.compress.recover.network import with_weights
    from compiler.compress.recover.train import Progress, relative_error, train

    setup, state = training.setup, training.state
    resumed_at = state.step

    def value() -> float:
        if goal.metric is None:
            return -relative_error(setup, training.config)
        return goal.metric(with_weights(training.student, setup.student.weights))

    stopped = train(setup, training.config, Progress(state, training.save, value, goal.enough, began))
    return Recovered(
        model=with_weights(training.student, state.best),
        steps=state.step,
        seconds=round(state.elapsed_s, 2),
        samples_per_s=setup.recipe.batch * state.step / max(state.busy_s, 1e-9),
        execution=str(training.config),
        checks=tuple(Check(*check) for check in state.checks),
        stopped=stopped,
        resumed_at=resumed_at,
    )


def _setup(pair: Pair, samples: Samples, recipe: Recipe, device: str, pool: Executor) -> DistillationSetup:
    import torch

    from compiler.compress.recover.network import network_of
    from compiler.compress.recover.train import DistillationSetup

    models = (pair.original, pair.pruned)
    teacher, student = (network_of(with_free_batch(model), device=device) for model in models)
    for network, model in zip((teacher, student), models, strict=True):
        _agree(network, model, samples, device)
    for tensor in student.weights.values():
        tensor.requires_grad_(True)
    channels = {name: torch.from_numpy(places).to(device) for name, places in pair.taps.items()}
    return DistillationSetup(teacher, student, channels, samples, recipe, pool)


def _begin(
    setup: DistillationSetup, student: ir.Model, folder: Path, key: str, device: str
) -> tuple[ExecutionConfig, State]:
    """Where to go on from: the checkpoint, or the beginning with the configuration that is fastest here."""
    from compiler.compress.recover.checkpoint import State, load_state
    from compiler.compress.recover.execution import ExecutionConfig, segments_for
    from compiler.compress.recover.train import find_config

    segments = segments_for(with_free_batch(student), batch=setup.recipe.batch, memory_bytes=setup.recipe.memory_bytes)
    state = load_state(folder, key=key)
    if state is None:
        config = find_config(setup, device=device, segments=segments)
        execution = (config.dtype, config.is_channels_last, config.parts, config.threads)
        return config, State(0, 0.0, 0.0, execution, dict(setup.student.weights))
    for name, tensor in setup.student.weights.items():
        tensor.data.copy_(state.weights[name])
    # the optimizer changes the network's own tensors: the state must hold these, not the copies read from disk
    state.weights = dict(setup.student.weights)
    dtype, is_channels_last, parts, threads = state.execution
    return ExecutionConfig(dtype, is_channels_last, segments, device, parts, threads), state


def _agree(network: Network, model: ir.Model, samples: Samples, device: str) -> None:
    """Compares PyTorch's outputs on several samples at once with ONNX Runtime's on as many as the model takes."""
    from compiler.compress.recover.network import run

    size = batch_of(model) or 1
    batch = samples.take(place % samples.count for place in range(2 * size))
    parts = [
        run_unoptimized(model, {name: tensor[at : at + size].numpy() for name, tensor in batch.items()})
        for at in (0, size)
    ]
    expected = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}
    try:
        outputs = run(network, {name: tensor.to(device) for name, tensor in batch.items()})
    except RuntimeError as error:
        raise UnsupportedModel(
            f"PyTorch cannot compute the model on {2 * size} samples at once: {str(error).splitlines()[0]}",
            remedy="Give the device a range of batches (`batch: {min: 1, opt: 1, max: 8}`), or leave recovery out.",
        ) from error
    stats = compare_all(expected, {name: tensor.detach().cpu().numpy() for name, tensor in outputs.items()})
    for name, output_stats in stats.items():
        if not TOLERANCES["fp32"].accepts(output_stats):
            raise UnsupportedModel(
                f"PyTorch computes output '{name}' differently from ONNX Runtime ({output_stats.sqnr_db:.0f} dB)",
                remedy="Build without recovery, and report this: an operator in compiler/compress/recover is wrong.",
            )


def _key(pair: Pair, samples: str, recipe: Recipe) -> str:
    """Digest of all that a checkpoint depends on."""
    taps = [(name, places.tolist()) for name, places in pair.taps.items()]
    parts = [graph_digest(pair.original), graph_digest(pair.pruned), samples, recipe, taps, version("torch")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
