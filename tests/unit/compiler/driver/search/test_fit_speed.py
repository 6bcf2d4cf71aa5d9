"""What a build that is too slow gets next: faster formats, as far as there are any."""

import pytest

from compiler.artifact import Evidence
from compiler.artifact.schema import Gate, GateName, GateUnit
from compiler.driver.search.fit_speed import MAX_BUILDS, shorter_time


def latency(value: float | None, limit: float = 10.0) -> tuple[Gate, ...]:
    passed = None if value is None else value <= limit
    return (Gate(GateName.LATENCY, limit, value, GateUnit.MS, passed, Evidence.HOST, "median"),)


def test_products_get_the_share_of_their_time_that_the_limit_is_of_the_whole():
    assert shorter_time(latency(12.5), 1.5, builds=0) == pytest.approx(1.2)


def test_the_last_build_has_the_fastest_formats():
    assert shorter_time(latency(10.1), 1.5, builds=MAX_BUILDS - 1) == 1.0


def test_no_less_than_all_weights_in_the_fastest_format():
    assert shorter_time(latency(40.0), 1.5, builds=1) == 1.0


@pytest.mark.parametrize(
    ("gates", "time", "builds"),
    [
        (latency(9.0), 1.5, 0),
        (latency(None), 1.5, 0),
        ((), 1.5, 0),
        (latency(12.5), 1.01, 0),
        (latency(12.5), 0.0, 0),
        (latency(12.5), 1.5, MAX_BUILDS),
        (
            (*latency(12.5), Gate(GateName.ACCURACY, 1.0, 2.0, GateUnit.POINTS_LOST, False, Evidence.HOST, "bound")),
            1.5,
            0,
        ),
    ],
    ids=["holds", "not judged", "no limit", "fastest already", "nothing known", "often enough", "inaccurate"],
)
def test_no_other_build_is_made(gates, time, builds):
    assert shorter_time(gates, time, builds=builds) is None
