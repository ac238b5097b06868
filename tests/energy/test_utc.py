import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.energy.utc import date_of, parse_utc, write_utc

LAST = calendar.timegm((9999, 12, 31, 23, 59, 59))


@given(st.integers(0, LAST))
def test_the_calendar_is_that_of_the_c_library(at_unix_s):
    assert date_of(at_unix_s) == tuple(time.gmtime(at_unix_s))[:3]
    assert parse_utc(write_utc(at_unix_s)) == at_unix_s


@pytest.mark.parametrize(
    ("text", "at_unix_s"),
    [
        ("1970-01-01", 0),
        ("2024-02-29T12:00", calendar.timegm((2024, 2, 29, 12, 0, 0))),
        ("2024-02-29 12:00:01Z", calendar.timegm((2024, 2, 29, 12, 0, 1))),
        ("2026-11-30T10:00+00:00", calendar.timegm((2026, 11, 30, 10, 0, 0))),
        ("2026-11-30T24:00Z", calendar.timegm((2026, 12, 1, 0, 0, 0))),
    ],
)
def test_utc_is_read(text, at_unix_s):
    assert parse_utc(text) == at_unix_s


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "2026-11-30T10:00+01:00", "2026-13-01", "2026-02-29", "1969-12-31"),
        *("2026-11-30T25:00Z", "2026-11-30T24:01Z", "2026-11-30T10:60Z", "0000-01-01"),
    ],
)
def test_what_is_no_utc_time_is_refused(text):
    with pytest.raises(ValueError, match=r"is no"):
        parse_utc(text)
