"""What `fleetc tune` says of kernels that the build may not have."""

from compiler.driver.tune_kernels import of_floats
from compiler.fleet.profile import load_profile
from compiler.target import find_target


def test_kernels_are_said_to_be_of_the_float_model_where_the_build_computes_in_integers() -> None:
    rules = find_target("tvm").capability(load_profile("raspberry-pi-5")).precisions
    said = {rule.name for rule in rules if of_floats(rule)}
    assert "int8" in said and not said & {"fp32", "fp16", "int8-weights"}
