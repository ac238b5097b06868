"""Conversations: what is seen of devices, and what is then found wrong with them."""

import pytest

from nodeserve.device.health_table import read_table
from nodeserve.errors import InvariantError
from nodeserve.health.table import with_overrides
from nodeserve.health.verdict import NODE, Verdicts
from nodeserve.wire.device_report import DeviceSample

TABLE = read_table()
UNIX_S = 1_700_000_000.0
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture
def verdicts():
    return Verdicts(TABLE, unix_offset_s=UNIX_S)


def found(verdicts, now_s):
    return [(f.meter, f.signal, f.severity, f.action) for f in verdicts.findings(now_s=now_s)]


def sample(meter="g0", **figures):
    return DeviceSample(meter=meter, index=0, name="x", age_s=0.0, **{"power_mw": 1, **figures})


@pytest.mark.parametrize(
    ("number", "severity", "action"),
    [
        (48, "fatal", "fence"),
        (79, "fatal", "fence"),
        (94, "error", "restart"),
        (31, "error", "restart"),
        (63, "warn", "drain"),
        (92, "warn", "warn"),
        (45, "ok", "none"),
        (4711, "warn", "warn"),
    ],
)
def test_an_xid_becomes_a_finding_by_the_table(verdicts, number, severity, action):
    verdicts.xid("g0", number, detail="from the log", now_s=5.0)
    (finding,) = verdicts.findings(now_s=6.0)
    assert (finding.severity, finding.action) == (severity, action)
    assert "from the log" in finding.detail
    assert finding.since_unix_s == UNIX_S + 5.0
    assert finding.provenance


def test_an_xid_that_is_not_known_says_its_number(verdicts):
    verdicts.xid("g0", 4711, detail="odd", now_s=5.0)
    assert "XID 4711: odd" in verdicts.findings(now_s=5.0)[0].detail


def test_a_finding_goes_after_it_has_been_good_and_a_fatal_one_stays(verdicts):
    verdicts.xid("g0", 31, detail="", now_s=0.0)
    verdicts.xid("g0", 48, detail="", now_s=0.0)
    assert len(found(verdicts, HOUR_S - 1)) == 2
    assert found(verdicts, HOUR_S) == [("g0", "xid_48", "fatal", "fence")]
    assert len(found(verdicts, 365 * DAY_S)) == 1
    assert verdicts.clear("g0", "xid_48") == 1
    assert found(verdicts, 365 * DAY_S) == []


def test_each_time_that_asks_for_a_restart_is_a_new_finding_and_others_keep_their_time(verdicts):
    for at_s in (0.0, 100.0):
        verdicts.xid("g0", 94, detail="", now_s=at_s)
        verdicts.xid("g0", 92, detail="", now_s=at_s)
    since = {f.signal: f.since_unix_s - UNIX_S for f in verdicts.findings(now_s=100.0)}
    assert since == {"xid_94": 100.0, "xid_92": 0.0}
    assert all("2 times" in f.detail for f in verdicts.findings(now_s=100.0))


def test_three_contained_errors_in_a_day_fence_and_three_in_two_days_do_not(verdicts):
    for place in range(3):
        verdicts.xid("g0", 94, detail="", now_s=place * HOUR_S)
        verdicts.xid("g1", 94, detail="", now_s=place * 0.9 * DAY_S)
    assert found(verdicts, 2 * HOUR_S)[0] == ("g0", "xid_94", "fatal", "fence")
    assert found(verdicts, 2 * DAY_S) == [("g0", "xid_94", "fatal", "fence")]
    assert verdicts.clear("g0") == 1
    verdicts.xid("g0", 94, detail="", now_s=2 * DAY_S)
    assert found(verdicts, 2 * DAY_S) == [("g0", "xid_94", "error", "restart")]


def test_applications_errors_are_counted_together_and_drain_at_the_fourth_in_an_hour(verdicts):
    for place, number in enumerate((13, 31, 43, 69)):
        verdicts.xid("g0", number, detail="", now_s=float(place))
    assert {action for *_, action in found(verdicts, 5.0)} == {"none", "restart"}
    verdicts.xid("g0", 13, detail="", now_s=4.0)
    assert ("g0", "xid_13", "error", "drain") in found(verdicts, 5.0)


@pytest.mark.parametrize(
    ("value", "signal", "action"),
    [
        (1, "recovery_gpu_reset", "fence"),
        (2, "recovery_node_reboot", "fence_node"),
        (4, "recovery_drain_and_reset", "fence"),
        (99, "recovery_other", "warn"),
    ],
)
def test_the_drivers_verdict_is_a_finding_and_wins_over_an_xid(verdicts, value, signal, action):
    verdicts.xid("g0", 94, detail="", now_s=1.0)
    verdicts.recovery_action("g0", value, now_s=2.0)
    by_signal = {f.signal: f for f in verdicts.findings(now_s=2.0)}
    assert by_signal[signal].action == by_signal["xid_94"].action == action
    assert signal in by_signal["xid_94"].provenance


def test_a_verdict_of_none_after_an_xid_fences_nothing_and_lets_it_clear(verdicts):
    verdicts.recovery_action("g0", 0, now_s=0.0)
    verdicts.xid("g0", 62, detail="", now_s=1.0)
    assert found(verdicts, 1.0) == [("g0", "xid_62", "fatal", "fence")]
    verdicts.recovery_action("g0", 0, now_s=2.0)
    assert found(verdicts, 2.0) == [("g0", "xid_62", "error", "restart")]
    assert "sees nothing to recover" in verdicts.findings(now_s=2.0)[0].provenance
    assert found(verdicts, 2.0 + HOUR_S) == []


def test_a_verdict_of_none_makes_nothing_worse_and_does_not_undo_an_escalation(verdicts):
    verdicts.xid("g0", 63, detail="", now_s=1.0)
    for at_s in (1.0, 2.0, 3.0):
        verdicts.xid("g1", 94, detail="", now_s=at_s)
    for meter in ("g0", "g1"):
        verdicts.recovery_action(meter, 0, now_s=4.0)
    assert found(verdicts, 4.0) == [
        ("g1", "xid_94", "fatal", "fence"),
        ("g0", "xid_63", "warn", "drain"),
    ]


def test_a_driver_that_gives_no_verdict_leaves_it_to_the_table(verdicts):
    verdicts.xid("g0", 62, detail="", now_s=1.0)
    verdicts.recovery_action("g0", 0, now_s=2.0)
    verdicts.recovery_action("g0", None, now_s=3.0)
    assert found(verdicts, 3.0) == [("g0", "xid_62", "fatal", "fence")]


def test_a_verdict_that_is_taken_back_stays_until_an_operator_clears_it(verdicts):
    verdicts.recovery_action("g0", 1, now_s=1.0)
    verdicts.recovery_action("g0", 0, now_s=2.0)
    assert found(verdicts, DAY_S) == [("g0", "recovery_gpu_reset", "fatal", "fence")]
    verdicts.clear(None)
    assert found(verdicts, DAY_S) == []


def test_lost_and_hung_gpus_are_fenced_and_reported_once(verdicts):
    for at_s in (0.0, 1.0, 2.0):
        verdicts.lost("g0", now_s=at_s)
        verdicts.hung("g1", now_s=at_s)
    assert found(verdicts, 3.0) == [
        ("g0", "gpu_lost", "fatal", "fence"),
        ("g1", "driver_hung", "fatal", "fence"),
    ]
    assert {f.since_unix_s for f in verdicts.findings(now_s=3.0)} == {UNIX_S}
    assert not any("times" in f.detail for f in verdicts.findings(now_s=3.0))


@pytest.mark.parametrize("number", [48, 31, 63])
def test_nothing_is_taken_out_of_service_for_a_gpu_that_nobody_can_name(verdicts, number):
    verdicts.xid(NODE, number, detail="", now_s=0.0)
    (finding,) = verdicts.findings(now_s=0.0)
    assert finding.action == "warn"
    assert "nobody knows which GPU" in finding.provenance


def test_a_figure_that_flaps_is_one_finding_until_it_has_been_good_for_a_while(verdicts):
    for second in range(300):
        pending = second % 20 < 10
        verdicts.take(sample(remap_pending=pending), now_s=float(second))
        if second:
            assert found(verdicts, float(second)) == [("g0", "remap_pending", "warn", "warn")]
    assert verdicts.findings(now_s=299.0)[0].since_unix_s == UNIX_S
    for second in range(300, 360):
        verdicts.take(sample(remap_pending=False), now_s=float(second))
    assert found(verdicts, 360.0) == []


def test_a_finding_of_a_device_that_says_no_more_does_not_clear(verdicts):
    verdicts.take(sample(remap_pending=True), now_s=0.0)
    for second in range(1, 300):
        verdicts.take(sample(), now_s=float(second))
    assert found(verdicts, DAY_S) == [("g0", "remap_pending", "warn", "warn")]


def test_what_is_still_bad_comes_back_after_it_was_cleared(verdicts):
    verdicts.take(sample(remap_failed=True), now_s=0.0)
    assert verdicts.clear("g0") == 1
    assert found(verdicts, 0.5) == []
    verdicts.take(sample(remap_failed=True), now_s=1.0)
    (again,) = verdicts.findings(now_s=1.0)
    assert again.since_unix_s == UNIX_S + 1.0


def test_uncorrected_errors_restart_each_time_and_fence_at_the_third(verdicts):
    actions = []
    for second in range(1200):
        verdicts.take(sample(ecc_uncorrected=second // 300), now_s=float(second))
        actions.append({action for *_, action in found(verdicts, float(second))})
    assert actions[299] == set()
    assert actions[300] == actions[899] == {"restart"}
    assert actions[900] == {"fence"}


def test_ten_samples_a_second_are_judged_as_one(verdicts):
    hot = sample(throttle_reasons=("hw_slowdown",), power_mw=1)
    for tenth in range(3500):
        verdicts.take(hot, now_s=tenth / 10)
    assert found(verdicts, 350.0) == []
    for tenth in range(3500, 3700):
        verdicts.take(hot, now_s=tenth / 10)
    assert found(verdicts, 370.0) == [("g0", "hw_slowdown", "error", "drain")]


def test_what_is_looked_up_now_and_then_comes_and_goes(verdicts):
    verdicts.state("g0", "persistence_off", detail="disabled", now_s=0.0)
    assert found(verdicts, DAY_S) == [("g0", "persistence_off", "warn", "warn")]
    verdicts.state("g0", "persistence_off", detail=None, now_s=DAY_S)
    assert len(found(verdicts, DAY_S + 59)) == 1
    assert found(verdicts, DAY_S + 60) == []
    with pytest.raises(InvariantError, match="xid_79"):
        verdicts.state("g0", "xid_79", detail="x", now_s=0.0)


def test_an_operators_action_is_used_and_named(verdicts):
    verdicts = Verdicts(with_overrides(TABLE, {"xid_79": "warn"}), unix_offset_s=0.0)
    verdicts.xid("g0", 79, detail="", now_s=0.0)
    (finding,) = verdicts.findings(now_s=0.0)
    assert (finding.severity, finding.action) == ("fatal", "warn")
    assert "health.overrides.xid_79" in finding.provenance


def test_the_same_again_says_the_same(verdicts):
    verdicts.xid("g1", 48, detail="", now_s=0.0)
    verdicts.xid("g0", 31, detail="", now_s=0.0)
    verdicts.take(sample("g0", remap_pending=True), now_s=0.0)
    first = verdicts.findings(now_s=1.0)
    assert [f.severity for f in first] == ["fatal", "error", "warn"]
    assert verdicts.findings(now_s=2.0) == first
