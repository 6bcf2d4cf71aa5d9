"""The training loop: the student matches the teacher's outputs on augmented samples until time, steps or the metric
end it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import torch

from compiler.compress.recover.checkpoint import State
from compiler.compress.recover.execution import ExecutionConfig, choose_config
from compiler.compress.recover.network import Network, Values, run
from compiler.compress.recover.operators import Tensor
from compiler.compress.recover.recipe import Recipe, Stop
from compiler.compress.recover.samples import Samples, varied, varied_batches
from compiler.fleet.machine import available_cpus

_POOL = 2
"""Batches whose samples are shuffled together: in each echo a sample is in a batch with others."""
_WARM_UP = 0.03
"""Share of the whole after which the learning rate is at its highest: Adam's moment estimates are poor before."""
_WARM_UP_STEPS = 20
"""Fewest warm-up steps."""
_SMALL = 1e-3
"""Least size assumed of a tensor, in the unit of its elements: a bias may begin with zeros, and would never change."""
_TRYING = 0.05
"""Share of the time limit for finding the fastest configuration."""
_TRIED = 16
"""Samples in a trial step."""
_PLAIN = 64
"""Samples without augmentation that the error is computed on where no metric is given."""


@dataclass(frozen=True)
class DistillationSetup:
    """Networks, data and settings of a distillation.

    Args:
        teacher: The original.
        student: The pruned model; its weights are changed in place.
        taps: Value → the teacher's channels that the student has.
        samples: The data.
        recipe: Its settings.
        pool: Threads for the parts of a batch.
    """

    teacher: Network
    student: Network
    taps: Mapping[str, Tensor]
    samples: Samples
    recipe: Recipe
    pool: Executor


@dataclass
class Progress:
    """What `train` needs beside the setup to continue, and to report.

    Args:
        state: Where it stands; changed in place.
        save: Writes the state.
        metric: Quality of the student's weights; higher is better.
        enough: Value of the metric that ends the training.
        began: When this run began; the state's seconds are those of all runs.
        saved: When the last checkpoint was written.
    """

    state: State
    save: Callable[[State], None]
    metric: Callable[[], float]
    enough: float
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)


def train(setup: DistillationSetup, config: ExecutionConfig, progress: Progress) -> Stop:
    """Steps and checks until something ends them; the state then holds the best weights and has been written."""
    state, recipe = progress.state, setup.recipe
    optimizer = optimizer_of(setup.student)
    if state.optimizer:
        optimizer.load_state_dict(state.optimizer)
    stop = _check_if_due(setup, progress)
    batches = _batches_with_targets(setup, config, start=state.step)
    try:
        while not stop:
            started = time.monotonic()
            inputs, targets = next(batches)
            set_rate(optimizer, recipe, state.step, state.elapsed_s)
            _set_gradients(setup, config, inputs, targets)
            optimizer.step()
            _clear_gradients(setup)
            state.step += 1
            state.busy_s += time.monotonic() - started
            state.elapsed_s += time.monotonic() - progress.began
            progress.began = time.monotonic()
            stop = _check_if_due(setup, progress) or _end(recipe, state)
            if stop or time.monotonic() - progress.saved > recipe.save_every_s:
                state.optimizer = optimizer.state_dict()
                progress.save(state)
                progress.saved = time.monotonic()
    finally:
        batches.close()
    return stop


def optimizer_of(student: Network) -> Tensor:
    """Adam, whose steps are shares of each tensor's own size (Adafactor, Shazeer and Stern, 2018)."""
    weights = student.weights.values()
    return torch.optim.Adam(
        [{"params": [tensor], "size": max(float(tensor.detach().square().mean().sqrt()), _SMALL)} for tensor in weights]
    )


def set_rate(optimizer: Tensor, recipe: Recipe, step: int, elapsed_s: float) -> None:
    """The learning rate of the next step: up in a line, down along a cosine."""
    done = recipe.progress(step, elapsed_s)
    rate = recipe.rate * min(1.0, done / _WARM_UP, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["size"]


def find_config(setup: DistillationSetup, *, device: str, segments: int) -> ExecutionConfig:
    """The fastest configuration for a step of this setup, by measurement; weights stay as they are."""
    size = min(_TRIED, setup.recipe.batch)
    batch = varied(setup.samples, size, seed=(setup.recipe.seed, 0))

    def step(config: ExecutionConfig) -> None:
        _place(setup, config)
        inputs = {name: config.lay_out(tensor) for name, tensor in batch.items()}
        _set_gradients(setup, config, inputs, _teach(setup, config, inputs))
        _clear_gradients(setup)

    seconds = _TRYING * setup.recipe.seconds
    cores = min(torch.get_num_threads(), available_cpus())  # PyTorch counts the cores and not the quota
    return choose_config(step, device=device, segments=segments, cores=cores, samples=size, seconds=seconds)


def relative_error(setup: DistillationSetup, config: ExecutionConfig) -> float:
    """Squared error of the student's outputs without augmentation, as a share of the energy of the teacher's."""
    wrong = energy = 0.0
    plain = ExecutionConfig(device=config.device)
    for start in range(0, min(_PLAIN, setup.samples.count), setup.recipe.batch):
        places = range(start, min(start + setup.recipe.batch, _PLAIN, setup.samples.count))
        inputs = {name: plain.lay_out(tensor) for name, tensor in setup.samples.take(places).items()}
        with torch.no_grad():
            expected, outputs = run(setup.teacher, inputs), run(setup.student, inputs)
        wrong += sum(float((outputs[name].double() - expected[name].double()).square().sum()) for name in expected)
        energy += sum(float(expected[name].double().square().sum()) for name in expected)
    return wrong / max(energy, 1e-30)


def _place(setup: DistillationSetup, config: ExecutionConfig) -> None:
    """Stores weights of convolutions in the same memory layout as images."""
    for tensor in (*setup.student.weights.values(), *setup.teacher.weights.values()):
        tensor.data = config.lay_out(tensor.data) if config.is_channels_last else tensor.data.contiguous()


def _batches_with_targets(
    setup: DistillationSetup, config: ExecutionConfig, *, start: int
) -> Generator[tuple[Values, Values], None, None]:
    """Inputs of every step from number `start` on, with the teacher's outputs."""
    _place(setup, config)
    recipe = setup.recipe
    size, steps = _POOL * recipe.batch, _POOL * recipe.echoes
    number, skipped = divmod(start, steps)
    for pool in varied_batches(setup.samples, size, seed=recipe.seed, start=number):
        parts = [
            _teach(
                setup, config, {name: config.lay_out(tensor[at : at + recipe.batch]) for name, tensor in pool.items()}
            )
            for at in range(0, size, recipe.batch)
        ]
        targets = _join(parts)
        random = np.random.default_rng((recipe.seed, number, 1))
        order = np.concatenate([random.permutation(size) for _ in range(recipe.echoes)]).reshape(steps, -1)
        for places in map(torch.from_numpy, order[skipped:]):
            yield (
                {name: config.lay_out(tensor[places]) for name, tensor in pool.items()},
                {name: tensor[places.to(tensor.device)] for name, tensor in targets.items()},
            )
        number, skipped = number + 1, 0


def _teach(setup: DistillationSetup, config: ExecutionConfig, inputs: Values) -> Values:
    """The teacher's outputs, and its feature taps in the channels that the student has."""
    parts = setup.pool.map(lambda part: _teach_part(setup, config, part), _split(inputs, config))
    return _join(list(parts))


def _teach_part(setup: DistillationSetup, config: ExecutionConfig, inputs: Values) -> Values:
    with torch.no_grad(), config.context():
        values = run(setup.teacher, inputs, taps=[*setup.taps])
    return {
        name: value.index_select(1, setup.taps[name]) if name in setup.taps else value
        for name, value in values.items()
        if value.is_floating_point()
    }


def _split(values: Values, config: ExecutionConfig) -> list[Values]:
    """The values of each part of a batch."""
    split = {name: tensor.tensor_split(config.parts) for name, tensor in values.items()}
    return [{name: parts[place] for name, parts in split.items()} for place in range(config.parts)]


def _join(parts: Sequence[Values]) -> Values:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _set_gradients(setup: DistillationSetup, config: ExecutionConfig, inputs: Values, targets: Values) -> None:
    """Sets the gradient of the loss in every weight; the loss is the mean over the parts of the batch."""
    weights = [*setup.student.weights.values()]

    def gradients(part: tuple[Values, Values]) -> Sequence[Tensor | None]:
        return torch.autograd.grad(_loss(setup, config, *part), weights, allow_unused=True)  # type: ignore[no-any-return]

    gradients_of_parts = setup.pool.map(gradients, zip(_split(inputs, config), _split(targets, config), strict=True))
    for weight, parts in zip(weights, zip(*gradients_of_parts, strict=True), strict=True):
        weight.grad = None if parts[0] is None else sum(parts[1:], start=parts[0]) / config.parts


def _loss(setup: DistillationSetup, config: ExecutionConfig, inputs: Values, targets: Values) -> Tensor:
    """Squared errors as shares of the energy: mean over the outputs, plus the weighted mean over the feature taps."""
    with config.context():
        outputs = run(setup.student, inputs, taps=[*setup.taps], segments=config.segments)
    errors = {
        name: (outputs[name].float() - value.float()).square().sum() / (value.float().square().sum() + 1e-12)
        for name, value in targets.items()
    }
    inside = [error for name, error in errors.items() if name in setup.taps]
    outside = [error for name, error in errors.items() if name not in setup.taps]
    loss = torch.stack(outside).mean()
    return loss + setup.recipe.tap_weight * torch.stack(inside).mean() if inside else loss


def _clear_gradients(setup: DistillationSetup) -> None:
    for tensor in setup.student.weights.values():
        tensor.grad = None


def _check_if_due(setup: DistillationSetup, progress: Progress) -> Stop | None:
    """Computes the metric at the beginning and then at equal intervals; the reason to stop, if there is one."""
    state, recipe = progress.state, setup.recipe
    if int(recipe.progress(state.step, state.elapsed_s) * recipe.checks) < len(state.checks):
        return None
    value = progress.metric()
    if all(value > earlier for _, _, earlier in state.checks):
        state.best = {name: tensor.detach().clone() for name, tensor in setup.student.weights.items()}
    state.checks.append((state.step, round(state.elapsed_s, 2), value))
    if value >= progress.enough:
        return "enough"
    values = [value for _, _, value in state.checks]
    return "no gain" if len(values) - 1 - values.index(max(values)) >= recipe.patience else None


def _end(recipe: Recipe, state: State) -> Stop | None:
    if recipe.steps is not None and state.step >= recipe.steps:
        return "steps"
    return "budget" if state.elapsed_s >= recipe.seconds else None
