"""What listeners with a budget have used in its period."""

from datetime import UTC, datetime

import pytest

from nodeserve.ledger.uses import Uses

NOW = datetime(2026, 12, 31, 22, 30, tzinfo=UTC).timestamp()
HOUR = int(NOW // 3600)


def used(uses, now=NOW, *, is_metered=True):
    report = uses.report(now_unix_s=now, is_metered=is_metered)
    return {use.listener: (use.energy_mj, use.period_ends_unix_s) for use in report.uses}


@pytest.mark.parametrize(
    ("period", "end"),
    [
        ("hour", datetime(2026, 12, 31, 23, tzinfo=UTC)),
        ("day", datetime(2027, 1, 1, tzinfo=UTC)),
        ("month", datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_period_ends_by_utc(period, end):
    uses = Uses({"chat": period}, lambda _listener, _hour: {}, now_unix_s=NOW)
    assert used(uses) == {"chat": (0, end.timestamp())}


def test_it_begins_with_what_is_booked_and_counts_on():
    asked = []

    def by_hour(listener, first):
        asked.append((listener, first))
        return {first: 100, HOUR: 5}

    uses = Uses({"chat": "day"}, by_hour, now_unix_s=NOW)
    assert asked == [("chat", HOUR - 22)]
    uses.name("d9-1", "chat")
    uses.bear("d9-1", HOUR, 7)
    assert used(uses)["chat"][0] == 112


def test_the_next_period_begins_at_nothing_whenever_windows_are_booked():
    uses = Uses({"chat": "hour"}, lambda _listener, _hour: {}, now_unix_s=NOW)
    uses.name("d9-1", "chat")
    uses.bear("d9-1", HOUR, 7)
    assert used(uses)["chat"][0] == 7
    later = NOW + 3600
    assert used(uses, later)["chat"][0] == 0
    uses.bear("d9-1", HOUR, 7)  # settled late
    uses.bear("d9-1", HOUR + 1, 3)
    assert used(uses, later)["chat"][0] == 3


def test_energy_waits_for_the_name_of_its_request():
    uses = Uses({"chat": "day"}, lambda _listener, _hour: {}, now_unix_s=NOW)
    uses.bear("d9-1", HOUR, 7)
    uses.bear("d9-2", HOUR, 9)
    assert used(uses)["chat"][0] == 0
    uses.name("d9-1", "chat")
    uses.name("d9-2", "other")
    assert used(uses)["chat"][0] == 7


def test_without_meters_nothing_is_known():
    uses = Uses({"chat": "day"}, lambda _listener, _hour: {}, now_unix_s=NOW)
    assert used(uses, is_metered=False)["chat"][0] is None


def test_without_budgets_there_is_nothing_to_say():
    uses = Uses({}, lambda _listener, _hour: {}, now_unix_s=NOW)
    uses.bear("d9-1", HOUR, 7)
    assert uses.report(now_unix_s=NOW, is_metered=True) is None
