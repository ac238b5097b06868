"""Which windows are settled, when, and by whose work."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeserve.energy.meter import LastReading
from nodeserve.energy.window import FORGET_S, GRACE_S, MAX_EDGES, Accountant
from nodeserve.wire.accounting import StepRun
from nodeserve.wire.kinds import Role
from tests.energy.shapes import PACKAGE, UNIX_S, engine, gpu, leg, log, meters, read, steps

ONE = ("d1-1.1", "decode")
TWO = ("d1-2.1", "decode")
BOTH = (leg(1), leg(2))


def accountant(*which, known=None):
    one = Accountant(known or {})
    one.meters_hello(meters(*(which or (gpu(),))))
    return one


def told(seq, begin_s, end_s, *, generation=3, batch=BOTH, role=Role.DECODE):
    one = steps(begin_s, end_s, batch=batch)
    return msgspec.structs.replace(one, seq=seq, generation=generation, role=role)


def test_the_first_reading_opens_a_meter_and_the_second_ends_a_window():
    ledger = accountant()
    ledger.meters_read(read(100.0, {"GPU-0": 5000}))
    first = ledger.settle(now_s=100.0)
    assert [opened.reading.counter_mj for opened in first.opened] == [5000]
    assert first.settled == ()
    ledger.meters_read(read(101.0, {"GPU-0": 75_000}))
    (settled,) = ledger.settle(now_s=101.0).settled
    assert (settled.window.metered_mj, settled.idle_mj) == (70_000, 70_000)
    assert ledger.settle(now_s=101.0) is None


def test_a_window_waits_for_its_engines_logs():
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    ledger.meters_read(read(100.0, {"GPU-0": 0}))
    ledger.settle(now_s=100.0)
    ledger.meters_read(read(101.0, {"GPU-0": 500_000}))
    ledger.step_log(told(1, 100.0, 100.9))
    assert ledger.settle(now_s=101.0) is None
    ledger.step_log(told(2, 100.9, 101.2))
    done = ledger.settle(now_s=101.2)
    (settled,) = done.settled
    assert settled.shares == {ONE: 250_000, TWO: 250_000}
    assert dict(done.read_logs) == {3: 1}


def test_after_the_grace_what_is_not_known_is_nobodys_and_stays_so():
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    ledger.meters_read(read(100.0, {"GPU-0": 0}))
    ledger.settle(now_s=100.0)
    ledger.step_log(told(1, 100.0, 100.5))
    ledger.meters_read(read(101.0, {"GPU-0": 500_000}))
    assert ledger.settle(now_s=101.0 + GRACE_S - 0.1) is None
    (settled,) = ledger.settle(now_s=101.0 + GRACE_S).settled
    assert settled.unattributed_mj == 250_000
    ledger.step_log(told(2, 100.5, 102.0))
    ledger.meters_read(read(102.0, {"GPU-0": 1_000_000}))
    (settled,) = ledger.settle(now_s=102.0).settled
    assert settled.shares == {ONE: 250_000, TWO: 250_000}


def test_a_group_uses_the_same_weights_on_every_meter():
    ledger = accountant(gpu(0), gpu(1))
    ledger.engine_hello(engine(on=("GPU-0", "GPU-1")), now_s=100.0)
    ledger.meters_read(read(100.0, {"GPU-0": 0, "GPU-1": 0}))
    ledger.step_log(told(1, 100.0, 101.0, batch=(leg(1), leg(2, context=30_000))))
    ledger.meters_read(read(101.0, {"GPU-0": 500_000, "GPU-1": 250_000}))
    first, second = ledger.settle(now_s=101.0).settled
    assert first.shares[TWO] > first.shares[ONE]
    assert second.shares == {
        doer: pytest.approx(mj / 2, abs=1) for doer, mj in first.shares.items()
    }


def test_engines_share_no_meter_that_is_not_theirs():
    ledger = accountant(gpu(0), gpu(1))
    ledger.engine_hello(engine(3, on=("GPU-0",)), now_s=100.0)
    ledger.engine_hello(engine(4, worker="prefill-0", on=("GPU-1",)), now_s=100.0)
    ledger.meters_read(read(100.0, {"GPU-0": 0, "GPU-1": 0}))
    ledger.step_log(told(1, 100.0, 101.0, batch=(leg(1),)))
    ledger.step_log(told(1, 100.0, 101.0, generation=4, batch=(leg(2),), role=Role.PREFILL))
    ledger.meters_read(read(101.0, {"GPU-0": 500_000, "GPU-1": 300_000}))
    shares = [settled.shares for settled in ledger.settle(now_s=101.0).settled]
    assert shares == [{ONE: 500_000}, {("d1-2.1", "prefill"): 300_000}]


def test_a_packages_energy_is_shared_by_engines_without_meters_by_busy_time():
    ledger = accountant(PACKAGE)
    ledger.engine_hello(engine(3, on=()), now_s=100.0)
    ledger.engine_hello(engine(4, worker="w", on=()), now_s=100.0)
    ledger.meters_read(read(100.0, {"cpu-package-0": 0}, idle_mw=None))
    ledger.step_log(told(1, 100.0, 101.0, batch=(leg(1),)))
    half = log(100.0, 101.0, batch=(leg(2),), runs=(StepRun(101.0, 10, 0.5),))
    ledger.step_log(msgspec.structs.replace(half, generation=4))
    ledger.meters_read(read(101.0, {"cpu-package-0": 90_000}, idle_mw=None))
    (settled,) = ledger.settle(now_s=101.0).settled
    assert settled.shares == {ONE: 60_000, TWO: 30_000}
    assert not settled.is_idle_known


def test_a_meter_that_was_not_read_is_settled_with_its_next_reading():
    ledger = accountant(gpu(0), gpu(1))
    ledger.engine_hello(engine(on=("GPU-0", "GPU-1")), now_s=100.0)
    ledger.meters_read(read(100.0, {"GPU-0": 0, "GPU-1": 0}))
    ledger.step_log(told(1, 100.0, 101.0, batch=(leg(1),)))
    ledger.meters_read(read(101.0, {"GPU-0": None, "GPU-1": 500_000}))
    assert [one.window.meter for one in ledger.settle(now_s=101.0).settled] == ["GPU-1"]
    ledger.step_log(told(2, 101.0, 102.0, batch=(leg(2),)))
    ledger.meters_read(read(102.0, {"GPU-0": 1_000_000, "GPU-1": 1_000_000}))
    first, second = ledger.settle(now_s=102.0).settled
    assert first.shares == {ONE: 500_000, TWO: 500_000}
    assert second.shares == {TWO: 500_000}


def test_what_was_counted_before_the_ledger_came_is_down():
    before = LastReading(counter_mj=1000, epoch=2, at_s=None, at_unix_s=UNIX_S + 40.0)
    ledger = accountant(known={"GPU-0": before})
    ledger.engine_hello(engine(), now_s=100.0)
    ledger.step_log(told(1, 99.0, 100.5, batch=(leg(1),)))
    ledger.meters_read(read(100.0, {"GPU-0": 9000}))
    ledger.meters_read(read(100.5, {"GPU-0": 109_000}))
    first, second = ledger.settle(now_s=100.5).settled
    assert (first.window.cause, first.quarantine_mj, first.window.span_s) == ("#down", 8000, 60.0)
    assert second.shares == {ONE: 100_000}


def test_a_dead_engine_is_not_waited_for():
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    ledger.step_log(told(1, 100.0, 100.5))
    ledger.meters_read(read(100.0, {"GPU-0": 0}))
    ledger.meters_read(read(101.0, {"GPU-0": 500_000}))
    ledger.engine_gone(3, now_s=100.75)
    (settled,) = ledger.settle(now_s=101.0).settled
    assert settled.unattributed_mj == pytest.approx(482_500 / 3, abs=1)
    assert not ledger.knows(3)


def test_the_next_engine_of_a_worker_says_that_the_last_one_is_gone():
    ledger = accountant()
    ledger.engine_hello(engine(3), now_s=100.0)
    ledger.step_log(told(1, 100.0, 100.1))
    ledger.engine_hello(engine(9), now_s=100.2)
    ledger.meters_read(read(101.0, {"GPU-0": 0}))
    ledger.step_log(msgspec.structs.replace(log(100.2, 101.0), generation=9))
    assert ledger.settle(now_s=101.0) is not None
    assert (ledger.knows(3), ledger.knows(9)) == (False, True)


def test_an_engine_that_falls_silent_is_waited_for_no_more_after_a_while():
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    ledger.step_log(told(1, 100.0, 101.0))
    for second in range(14):
        ledger.meters_read(read(100.0 + second, {"GPU-0": 70_000 * second}))
        ledger.settle(now_s=100.0 + second + GRACE_S)
    assert not ledger.knows(3)
    ledger.meters_read(read(120.0, {"GPU-0": 70_000 * 20}))
    (settled,) = ledger.settle(now_s=120.0).settled
    assert (settled.unattributed_mj, settled.idle_mj) == (0, settled.window.metered_mj)
    assert FORGET_S > GRACE_S


def test_logs_of_an_engine_unknown_and_readings_of_an_old_monitor_are_told_apart():
    ledger = accountant()
    assert not ledger.step_log(told(1, 100.0, 101.0))
    ledger.meters_hello(meters(gpu(), generation=5))
    assert ledger.meters_read(read(100.0, {"GPU-0": 0}, generation=5))
    assert ledger.meters_read(read(101.0, {"GPU-0": 0}, generation=1))
    assert not ledger.meters_read(read(101.0, {"GPU-0": 0}, generation=6))
    assert not ledger.meters_read(read(102.0, {"GPU-7": 0}, generation=5))
    assert len(ledger.settle(now_s=110.0).opened) == 1


def test_a_clock_set_back_changes_neither_energy_nor_order():
    ledger = accountant()
    ledger.meters_read(read(100.0, {"GPU-0": 0}))
    earlier = msgspec.structs.replace(read(101.0, {"GPU-0": 70_000}), at_unix_s=UNIX_S - 5000.0)
    ledger.meters_read(earlier)
    (settled,) = ledger.settle(now_s=101.0).settled
    assert (settled.window.metered_mj, settled.window.span_s) == (70_000, 1.0)


def test_when_nothing_can_be_booked_neighbouring_windows_become_one():
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    for second in range(MAX_EDGES + 50):
        ledger.meters_read(read(100.0 + second, {"GPU-0": 1000 * second}))
    assert ledger.num_waiting <= MAX_EDGES
    done = ledger.settle(now_s=1e6)
    assert sum(one.window.metered_mj for one in done.settled) == 1000 * (MAX_EDGES + 49)
    assert len({one.window.hour for one in done.settled}) >= 1
    ends = [one.window.begin_s for one in done.settled][1:]
    assert ends == [one.window.end_s for one in done.settled][:-1]


SECONDS = st.lists(
    st.tuples(st.integers(0, 700_000), st.lists(st.integers(1, 5), max_size=4, unique=True)),
    min_size=2,
    max_size=8,
)


def settle_all(seconds, *, skip=frozenset()):
    """What each leg bears when some readings are not made."""
    ledger = accountant()
    ledger.engine_hello(engine(), now_s=100.0)
    counter_mj, shares, metered_mj = 0, {}, 0
    ledger.meters_read(read(100.0, {"GPU-0": 0}, idle_mw=0))
    for number, (mj, legs) in enumerate(seconds):
        begin_s = 100.0 + number
        ledger.step_log(told(number + 1, begin_s, begin_s + 1.0, batch=tuple(map(leg, legs))))
        counter_mj += mj
        if number not in skip:
            ledger.meters_read(read(begin_s + 1.0, {"GPU-0": counter_mj}, idle_mw=0))
    for settled in ledger.settle(now_s=1e6).settled:
        metered_mj += settled.window.metered_mj
        assert settled.allocated_mj + settled.idle_mj == settled.window.metered_mj
        for doer, mj in settled.shares.items():
            shares[doer] = shares.get(doer, 0) + mj
    return metered_mj, shares


@given(SECONDS)
@settings(max_examples=50)
def test_windows_of_constant_power_can_be_merged_without_moving_more_than_rounding(seconds):
    legs = max((legs for _, legs in seconds), key=len) or [1]
    steady = [(100_000, legs)] * len(seconds)
    apart, merged = settle_all(steady), settle_all(steady, skip={0, len(steady) // 2 - 1} - {-1})
    assert apart[0] == merged[0]
    for doer, mj in apart[1].items():
        assert abs(merged[1][doer] - mj) <= len(seconds) * 2 + mj * 1e-3


@given(SECONDS)
@settings(max_examples=50)
def test_it_is_deterministic_and_only_who_ran_bears_anything(seconds):
    metered_mj, shares = settle_all(seconds)
    assert (metered_mj, shares) == settle_all(seconds)
    assert metered_mj == sum(mj for mj, _ in seconds)
    ran = {f"d1-{number}.1" for _, legs in seconds for number in legs}
    assert {leg_id for leg_id, _ in shares} <= ran
