"""What all trials of one device share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import onnx_ir as ir

from compiler.driver.clock import Clock
from compiler.driver.stages.data import Data
from compiler.driver.stages.inputs import BuildStart
from compiler.driver.stages.run import Stages
from compiler.passes.quantized import is_quantized
from compiler.plan import BuildOptions, Plan
from compiler.plan.jobs import Job
from compiler.store import Store


@dataclass(frozen=True)
class BuildContext:
    """What all trials of one device share.

    Args:
        job: The device with everything that was decided for it.
        ready: The imported model with the device's sizes, and the inputs it is verified on.
        data: What its accuracy is judged on, and its ranges are observed on.
        options: The command line.
        store: Where finished stages are.
        clock: What the stages took.
    """

    job: Job
    ready: BuildStart
    data: Data
    options: BuildOptions
    store: Store
    clock: Clock = field(compare=False)

    @property
    def stages(self) -> Stages:
        """What runs its stages."""
        return Stages(self.store, self.clock)

    @property
    def original(self) -> tuple[ir.Model, str]:
        """The imported model that candidates are compared with on whole data sets, and its graph digest.

        Its batch is left open where the device's sizes are the model's own otherwise: devices that differ in their
        batch alone share what it computes.
        """
        ready = self.ready
        return (ready.any_batch or ready).model, (ready.any_batch or ready).digest

    @property
    def name(self) -> str:
        """The device class."""
        return self.job.device.name

    @property
    def by_target(self) -> tuple[BuildContext, ...]:
        """The same device through each of its targets, the preferred one first."""
        return (self, *(replace(self, job=other) for other in self.job.others))

    def through(self, plan: Plan) -> BuildContext:
        """The same device through the target of a plan: what works on a build of that target is given."""
        return next((context for context in self.by_target if context.job.plan.target == plan.target), self)

    @property
    def is_quantized(self) -> bool:
        """Whether the model came with quantizers in it: then it is passed on as it is."""
        return is_quantized(self.ready.model)


def with_plan(context: BuildContext, plan: Plan) -> BuildContext:
    """The same device by another plan."""
    return replace(context, job=replace(context.job, plan=plan))
