import pytest

from nodeserve.cli.energy_ledger import find_ledger, read_period
from nodeserve.clock import unix_now_s
from nodeserve.energy.utc import DAY_S, HOUR_S, parse_utc
from nodeserve.errors import ConfigError


def test_a_ledger_that_is_named_is_taken_as_it_is(tmp_path):
    assert find_ledger(str(tmp_path / "x.db"), None, None) == tmp_path / "x.db"


def test_periods_are_whole_hours():
    period = read_period("2026-03-10T10:59", "2026-03-11T01:30Z")
    assert period == (parse_utc("2026-03-10T10:00"), parse_utc("2026-03-11T01:00"))


def test_without_times_it_is_all_up_to_now():
    begin, end = read_period(None, None)
    assert begin == 0
    assert abs(end - unix_now_s()) < 60


def test_ages_are_hours_or_days():
    for text, age_s in (("24h", 24 * HOUR_S), ("7d", 7 * DAY_S)):
        begin, end = read_period(text, None)
        assert begin % HOUR_S == 0
        assert age_s <= end - begin < age_s + HOUR_S


def test_the_future_is_left_out():
    assert read_period(None, "2999-01-01")[1] <= unix_now_s()


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        ("last week", None, "--since: 'last week' is no UTC time such as 2026-11-30T10:00Z, or an"),
        (None, "5m", "--until: '5m' is no UTC time"),
        ("2026-03-10", "2026-03-10", "no hour lies between them"),
        ("2026-03-11", "2026-03-10", "no hour lies between them"),
    ],
)
def test_what_is_no_period_is_refused(since, until, said):
    with pytest.raises(ConfigError) as caught:
        read_period(since, until)
    assert said in str(caught.value)
