"""What pruning makes of a rewritten model: the form that is cut and repaired, and that form trained to make up for it.

recover      ends where half of the accuracy limit holds, where time is up, or where nothing is gained; a build that was
             killed goes on from the last checkpoint
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.compress.prune.groups import find_ties
from compiler.compress.prune.prepare import prepare
from compiler.compress.recover import Goal, Metric, Pair, Recipe, choose_taps, recover
from compiler.driver.stages.context import BuildContext
from compiler.driver.stages.data import AccuracyTest
from compiler.driver.stages.files import border_digest, load_stage, save_stage
from compiler.driver.stages.importance import batches_of, calibration_of
from compiler.driver.stages.outputs import BATCH, drop_of, model_outputs
from compiler.driver.stages.prune import pruned_entry, read_pruned, read_removed
from compiler.errors import UnsupportedModel
from compiler.evaluate import run_dataset
from compiler.plan import Plan
from compiler.store import Entry, StageName, read_result, stage_key, write_result

SHARE = 0.5
"""Of the accuracy limit: a loss no greater ends a recovery, and the rest is left to the precision that comes after."""

_RECOVERED = "recovered.json"


@dataclass(frozen=True)
class _Goal:
    """What a recovery is judged by.

    Args:
        name: The task's metric; empty where nothing judges, and the error of the outputs counts.
        key: All that its values depend on beside the model.
        metric: Model → points lost, negated; None where nothing judges.
        enough: The value that ends it.
    """

    name: str = ""
    key: str = "outputs"
    metric: Metric | None = None
    enough: float = math.inf


def pruned_search_entries(
    context: BuildContext, plan: Plan, rewritten: Entry, *, recovers: bool = True
) -> tuple[Entry, ...]:
    """The rewritten model pruned, and recovered where the plan says so: the entries of both, the last what counts.

    Args:
        context: The device.
        plan: How much is pruned, and for how long it is trained.
        rewritten: The model.
        recovers: Whether a recovery that the plan says is done; without it the pruned model is the last.

    Raises:
        Unprunable: Nothing of it can be cut, or less than a ratio that was asked for.
        UnsupportedModel: It cannot be trained.
    """
    pruned = pruned_entry(context, plan, rewritten)
    if not (recovers and plan.pruning.recovers):
        return (pruned,)
    return (pruned, _recovered_entry(context, plan, rewritten, pruned))


def read_pruning(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """What was pruned and recovered, of a border model's entries; None where nothing was."""
    by_stage = {StageName(entry.stage): entry for entry in entries}
    if StageName.PRUNE not in by_stage:
        return None
    last = by_stage.get(StageName.RECOVER)
    recovered = read_result(last, _RECOVERED) if last else None
    return {**read_pruned(by_stage[StageName.PRUNE]), "recovered": recovered}


def _recovered_entry(context: BuildContext, plan: Plan, rewritten: Entry, pruned: Entry) -> Entry:
    data, recipe, goal = calibration_of(context), Recipe(seconds=plan.pruning.recover_s), _goal(context, pruned)
    if data.whole:
        raise UnsupportedModel(
            "recovery learns from many samples at once, and the inputs have no axis that counts them"
        )

    def make(files: Path) -> None:
        context.clock.note(f"recovery of at most {recipe.seconds / 60:g} min")
        original, small = load_stage(rewritten), load_stage(pruned)
        taps = choose_taps(small, find_ties(prepare(original)), read_removed(pruned))
        recovered = recover(
            Pair(original, small, taps),
            batches_of(data),
            folder=folder,
            recipe=recipe,
            goal=Goal(goal.metric, goal.enough),
        )
        save_stage(recovered.model, files)
        write_result(files, _RECOVERED, {"metric": goal.name, **recovered.to_dict()})

    inputs: dict[str, object] = {
        "prune": pruned.digest,
        "data": [data.digest, data.count],
        "recipe": asdict(recipe),
        "judge": goal.key,
    }
    stage = stage_key(StageName.RECOVER, make, inputs)
    folder = context.store.workspace(stage)
    entry = context.stages.obtain(stage, make)
    shutil.rmtree(folder, ignore_errors=True)
    return entry


def _goal(context: BuildContext, pruned: Entry) -> _Goal:
    """The gate's own metric. Its key has what the pruned model loses by it: a metric of the user's own, or another
    setting of one of ours, tells itself by nothing else."""
    judge, limit = context.data.judge, context.job.plan.constraints.limits.accuracy_drop_pct
    if judge is None:
        return _Goal()
    outputs = model_outputs(load_stage(pruned), border_digest(pruned), judge.dataset, context.stages)
    begins = drop_of(context, judge, outputs)
    key = f"{judge.task.name} {judge.dataset.digest} {judge.dataset.count} {limit} {begins}"
    return _Goal(judge.task.metric, key, _metric(context, judge), math.inf if limit is None else -SHARE * limit)


def _metric(context: BuildContext, judge: AccuracyTest) -> Metric:
    return lambda model: -drop_of(context, judge, run_dataset(model, judge.dataset, batch=BATCH)).judged_pct
