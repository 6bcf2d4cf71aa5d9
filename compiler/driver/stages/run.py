"""A stage is run: its result comes from the store or is made now, and the time is counted under the stage's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compiler.driver.clock import Clock
from compiler.store import Entry, Stage, StageName, Store, stage_key


@dataclass(frozen=True)
class Stages:
    """Runs the stages of one device.

    Args:
        store: Where finished stages are.
        clock: What times them, and tells of them.
    """

    store: Store
    clock: Clock = field(default_factory=Clock, compare=False)

    def run(self, name: StageName, make: Callable[[Path], None], **inputs: object) -> Entry:
        """The finished stage.

        Args:
            name: Which stage.
            make: Fills an empty folder with the result; a function of the module that computes it.
            inputs: All that can change the result beside the code: digests, options, tool versions.

        Raises:
            StorageError: The store cannot be written, or the disk is full.
        """
        return self.obtain(stage_key(name, make, inputs), make)

    def obtain(self, stage: Stage, make: Callable[[Path], None]) -> Entry:
        """The same by a key that was made before, for a stage that keeps something under it while it is made."""
        with self.clock.timed(StageName(stage.name)), self.store.gate.stage():
            return self.store.obtain(stage, make)

    def measure(self, name: StageName, make: Callable[[Path], None], **inputs: object) -> Entry:
        """The same for a stage that times, or looks at memory: no other work of any build goes on while it is made."""
        stage = stage_key(name, make, inputs)
        with self.clock.timed(name):
            if (entry := self.store.find(stage) or self.store.fetch(stage)) is not None:
                return entry
            with self.store.gate.alone():  # before the store's lock: nobody waits at the gate with one
                return self.store.obtain(stage, make)
