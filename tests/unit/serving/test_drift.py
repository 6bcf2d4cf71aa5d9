"""Drift: requests like the calibration data raise no alarm, however few those were; others do, within a window."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from compiler.artifact.schema import DriftFigures
from compiler.evaluate.drift import describe, input_statistics
from serving.drift import MOVED, WINDOW, DriftMonitor, least_shift

STEP = 50


class Camera:
    """Pictures of 64 pixels, each with a brightness and a contrast of its own."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)

    def pictures(self, count: int) -> NDArray[np.float32]:
        contrast, brightness = self._draw.gamma(4.0, 0.25, (count, 1)), 0.3 * self._draw.normal(size=(count, 1))
        return (contrast * self._draw.normal(size=(count, 64)) + brightness).astype(np.float32)

    def monitor(self, samples: int) -> DriftMonitor:
        calibration = self.pictures(samples)
        return DriftMonitor(DriftFigures(samples, "", {"x": describe(calibration, input_statistics(calibration))}, {}))


def worst(monitor: DriftMonitor) -> float:
    return max(monitor.shifts()["x", True].values(), default=0.0)


@pytest.mark.parametrize("samples", [33, 128, 250, 1024])
def test_twenty_thousand_clean_requests_raise_no_alarm(samples: int) -> None:
    camera = Camera(samples)
    monitor, highest = camera.monitor(samples), 0.0
    for _ in range(20_000 // STEP):
        monitor.see({"x": camera.pictures(STEP)}, {}, STEP)
        highest = max(highest, worst(monitor))
    assert 0.0 < highest < least_shift(samples)


@pytest.mark.parametrize(("brighter", "noise"), [(0.35, 0.0), (0.0, 0.8)])
def test_brightness_and_noise_are_seen_within_a_window(brighter: float, noise: float) -> None:
    camera, draw = Camera(1), np.random.default_rng(2)
    monitor = camera.monitor(250)
    monitor.see({"x": camera.pictures(WINDOW)}, {}, WINDOW)
    assert worst(monitor) < MOVED
    pictures = camera.pictures(WINDOW) + np.float32(brighter)
    monitor.see({"x": pictures + noise * draw.normal(size=pictures.shape).astype(np.float32)}, {}, WINDOW)
    assert worst(monitor) > least_shift(250) == MOVED


def test_requests_alone_give_the_figures_that_they_give_together() -> None:
    camera = Camera(3)
    together, alone, pictures = camera.monitor(250), Camera(3).monitor(250), camera.pictures(WINDOW)
    together.see({"x": pictures}, {}, WINDOW)
    for picture in pictures:
        alone.see({"x": picture[None]}, {}, 1)
    assert alone.shifts() == together.shifts()
    assert alone.shifts()["x", True]
