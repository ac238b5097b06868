"""What a device draws for what is learnt from its windows."""

import random

import pytest

from nodeserve.energy.batch import Caused
from nodeserve.energy.calibration import MAX_FACTOR, TYPICAL, Calibration, Draw

DEVICE = Draw(200_000.0, 400_000.0, 500_000.0)
"""In mW: nothing like the typical ratios."""


def windows(count, *, kinds, noise=0.05):
    source = random.Random(3)
    for _ in range(count):
        compute_s = source.uniform(0.0, 0.9) if kinds > 1 else 0.2
        caused = Caused(1.0, compute_s, 0.9 - compute_s)
        yield caused, round(DEVICE.weigh(caused) * source.gauss(1.0, noise))


def ratios(draw):
    return (draw.compute / draw.step, draw.memory / draw.step)


def test_it_begins_with_what_is_typical():
    assert Calibration().draw == TYPICAL


def test_it_learns_how_dear_computing_is_beside_memory_from_windows_that_differ():
    calibration = Calibration()
    for caused, used_mj in windows(100, kinds=2):
        calibration.learn([caused], used_mj)
    draw = calibration.draw
    one, other = Caused(1.0, 0.8, 0.1), Caused(1.0, 0.1, 0.8)
    expected = DEVICE.weigh(one) / DEVICE.weigh(other)
    assert draw.weigh(one) / draw.weigh(other) == pytest.approx(expected, rel=0.05)
    assert TYPICAL.weigh(one) / TYPICAL.weigh(other) > 1.3 * expected


def test_windows_of_one_kind_say_nothing_and_change_nothing():
    calibration = Calibration()
    for caused, used_mj in windows(100, kinds=1):
        calibration.learn([caused], used_mj)
    assert ratios(calibration.draw) == pytest.approx(ratios(TYPICAL), rel=0.2)


def test_it_forgets_what_a_device_drew_at_other_clocks():
    calibration = Calibration()
    for _ in range(300):
        calibration.learn([Caused(1.0, 0.9, 0.0)], 900_000)
        calibration.learn([Caused(1.0, 0.0, 0.9)], 300_000)
    before = calibration.draw
    for _ in range(2000):
        calibration.learn([Caused(1.0, 0.9, 0.0)], 400_000)
        calibration.learn([Caused(1.0, 0.0, 0.9)], 300_000)
    after = calibration.draw
    assert before.compute / before.memory > 1.5 * after.compute / after.memory


def test_nonsense_keeps_within_bounds_and_positive():
    calibration = Calibration()
    source = random.Random(1)
    for _ in range(200):
        caused = Caused(*(source.choice([0.0, 1.0]) for _ in range(3)))
        calibration.learn([caused], source.choice([0, 10**9]))
        parts = zip(
            (calibration.draw.step, calibration.draw.compute, calibration.draw.memory),
            (TYPICAL.step, TYPICAL.compute, TYPICAL.memory),
            strict=True,
        )
        assert all(1 / MAX_FACTOR <= found / typical <= MAX_FACTOR for found, typical in parts)


def test_windows_in_which_nothing_was_caused_teach_nothing():
    calibration = Calibration()
    calibration.learn([], 500)
    calibration.learn([Caused()], 500)
    assert calibration.draw == TYPICAL
