import re

import pytest

from nodeserve.device.health_table import read_table
from nodeserve.errors import ConfigError, InvariantError
from nodeserve.health.table import OTHER_XID, parse_table, with_overrides
from nodeserve.wire.device_report import ACTIONS, SEVERITIES

TABLE = read_table()

XIDS = (
    *(8, 11, 13, 25, 31, 32, 37, 38, 39, 40, 41, 43, 44, 45, 46, 48, 62, 63, 64, 66, 67, 69),
    *(70, 71, 72, 74, 79, 80, 92, 93, 94, 95, 106, 107, 109, 110, 119, 120, 121, 136, 137, 140),
    *(141, 143, 144, 145, 146, 147, 148, 149, 150, 155, 156, 158, 160, 161),
)
ROW = '[a]\nsource = "state"\nwhat = "w"\nseverity = "warn"\naction = "warn"\nprovenance = "p"\n'


def test_every_xid_has_a_row_of_its_own_and_others_share_one():
    numbers = [row.number for row in TABLE.values() if row.source == "xid"]
    assert len(numbers) == len(set(numbers))
    assert set(XIDS) <= set(numbers)
    assert TABLE[OTHER_XID].number is None
    assert all(TABLE[f"xid_{number}"].number == number for number in XIDS)


def test_every_value_of_the_drivers_verdict_has_a_row():
    rows = {row.number: row.action for row in TABLE.values() if row.source == "recovery"}
    assert set(rows) == {None, 1, 2, 3, 4, 5, 6, 7}
    assert rows[2] == rows[7] == "fence_node"
    assert {rows[1], rows[3], rows[4], rows[6]} == {"fence"}


@pytest.mark.parametrize("signal", TABLE)
def test_a_row_says_what_it_asks_for_and_why(signal):
    row = TABLE[signal]
    assert row.severity in SEVERITIES
    assert row.action in ACTIONS
    assert len(row.provenance) > 10
    assert row.what
    assert row.clear_after_s > 0
    assert re.fullmatch(r"[a-z0-9_]+", signal)


def test_an_operator_is_needed_exactly_where_a_gpu_is_fenced():
    for signal, row in TABLE.items():
        assert (row.severity == "fatal") == row.action.startswith("fence"), signal


def test_what_the_tools_do_not_agree_on_is_noted():
    for signal in ("xid_63", "xid_94", "xid_109", "xid_62", "xid_31", "ecc_uncorrected"):
        assert TABLE[signal].conflicts, signal


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (ROW + ROW, "twice|overwrite|declare"),
        (ROW.replace('action = "warn"', 'action = "panic"'), "a: action panic is unknown"),
        (ROW.replace('severity = "warn"', 'severity = "bad"'), "a: severity bad is unknown"),
        (ROW.replace('"p"', '""'), "a: provenance is missing"),
        (ROW.replace('action = "warn"', 'action = "fence"'), "a: fence asks for an operator"),
        (ROW.replace('"state"', '"sample"'), "a: field None of a sample"),
        (ROW + 'colour = "red"\n', "colour"),
        (ROW.replace('"state"', '"sample"') + 'field = "power_mw"\nkind = "level"\n', "at_least"),
        (ROW.replace('"state"', '"sample"') + 'field = "xids"\nkind = "rate"\n', "window_s"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text, wrong):
    with pytest.raises(InvariantError, match=wrong):
        parse_table(text)


def test_an_operator_chooses_another_action():
    table = with_overrides(TABLE, {"xid_63": "warn", "xid_94": "none"})
    assert (table["xid_63"].action, table["xid_63"].severity) == ("warn", "warn")
    assert table["xid_94"].escalates is None
    assert table["xid_94"].is_overridden
    assert table["xid_95"] == TABLE["xid_95"]


def test_unknown_names_are_refused_all_at_once_with_the_nearest():
    with pytest.raises(ConfigError) as refusal:
        with_overrides(TABLE, {"xid_790": "fence", "remap_failed": "warm", "xid_63": "warn"})
    assert str(refusal.value).splitlines() == [
        "health.overrides.xid_790 is no signal (did you mean `xid_79`?)",
        (
            "health.overrides.remap_failed is 'warm' (did you mean `warn`?); "
            "use one of none, warn, drain, restart, fence, fence_node"
        ),
    ]
