from nodeserve.monitor.idle_power import IdlePower

LOW_MHZ, HIGH_MHZ = 345, 1980


def rest(idle, begin_s, seconds, power_mw, *, clock_mhz=LOW_MHZ, is_idle=True):
    """Let a device be so for a while, ten looks a second."""
    for tick in range(int(seconds * 10)):
        idle.take(begin_s + tick / 10, power_mw=power_mw, clock_mhz=clock_mhz, is_idle=is_idle)
    return begin_s + seconds


def test_nothing_is_known_before_a_device_was_idle_for_a_while():
    idle = IdlePower()
    at_s = rest(idle, 0, 60, 300_000, is_idle=False)
    assert idle.at(LOW_MHZ) is None
    at_s = rest(idle, at_s, 5.0, 70_000)
    assert idle.at(LOW_MHZ) is None
    rest(idle, at_s, 0.2, 70_000)
    assert idle.at(LOW_MHZ) == 70_000


def test_work_in_between_begins_the_while_anew():
    idle = IdlePower()
    at_s = rest(idle, 0, 4, 70_000)
    at_s = rest(idle, at_s, 0.1, 300_000, is_idle=False)
    rest(idle, at_s, 4, 70_000)
    assert idle.at(LOW_MHZ) is None


def test_power_that_still_falls_is_not_idle_power():
    idle = IdlePower()
    for tick in range(100):
        idle.take(tick / 10, power_mw=300_000 - 2000 * tick, clock_mhz=LOW_MHZ, is_idle=True)
    assert idle.at(LOW_MHZ) is None


def test_the_lowest_is_kept():
    idle = IdlePower()
    at_s = rest(idle, 0, 10, 80_000)
    at_s = rest(idle, at_s, 10, 70_000)
    rest(idle, at_s, 10, 75_000)
    assert idle.at(LOW_MHZ) == 70_000


def test_each_range_of_clocks_has_its_own_and_lower_ones_stand_in():
    idle = IdlePower()
    at_s = rest(idle, 0, 10, 70_000)
    assert idle.at(HIGH_MHZ) == 70_000
    rest(idle, at_s, 10, 115_000, clock_mhz=HIGH_MHZ)
    assert (idle.at(LOW_MHZ), idle.at(HIGH_MHZ)) == (70_000, 115_000)


def test_higher_clocks_say_nothing_of_lower_ones():
    idle = IdlePower()
    rest(idle, 0, 10, 115_000, clock_mhz=HIGH_MHZ)
    assert idle.at(LOW_MHZ) is None


def test_what_is_not_read_is_not_zero():
    idle = IdlePower()
    rest(idle, 0, 10, None)
    rest(idle, 10, 10, 0)
    rest(idle, 20, 10, 70_000, clock_mhz=None)
    assert idle.at(LOW_MHZ) is None
    assert idle.at(None) is None
