"""float16 is offered where the cores compute in it."""

from __future__ import annotations

import pytest

from compiler.fleet.profile import load_profile
from targets.arm_tvm import TARGET


@pytest.mark.parametrize(("profile", "offered"), [("raspberry-pi-5", True), ("raspberry-pi-4", False)])
def test_half_is_offered_by_the_instructions_of_the_cores(profile: str, offered: bool) -> None:
    capability = TARGET.capability(load_profile(profile))
    assert ("fp16" in [rule.name for rule in capability.precisions]) == offered
    assert ("fp16" in capability.precision_refusals) != offered
    assert ("FLOAT16" in capability.ops["Conv"].dtypes) == offered
