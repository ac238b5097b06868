"""UTC without a clock: what a text, a year and a month are in seconds since 1970.

``datetime`` would do, but what is pure imports nothing that can read a clock.
"""

import calendar
import re
from typing import Final

HOUR_S: Final = 3_600
DAY_S: Final = 86_400

_TIME: Final = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d))?)?(?:Z|\+00:00)?"
)
_DAYS_IN_ERA: Final = 146_097
_DAYS_TO_1970: Final = 719_468


def parse_utc(text: str) -> int:
    """Return the Unix time of ``2026-11-30``, ``2026-11-30T10:00``, with seconds, ``Z`` or not.

    Raises:
        ValueError: It is none of these, no such day, or in another time zone than UTC.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no UTC time such as 2026-11-30T10:00Z")
    year, month, day = int(found["year"]), int(found["month"]), int(found["day"])
    hour, minute, second = (int(found[part] or 0) for part in ("hour", "minute", "second"))
    if year < 1970 or not 1 <= month <= 12:
        raise ValueError(f"{text!r} is no month since 1970")
    past_24 = 3_600 * hour + 60 * minute + second > DAY_S
    if not 1 <= day <= calendar.monthrange(year, month)[1] or max(minute, second) > 59 or past_24:
        raise ValueError(f"{text!r} is no time of the calendar")
    return calendar.timegm((year, month, day, hour, minute, second))


def date_of(at_unix_s: int) -> tuple[int, int, int]:
    """Return year, month and day of a Unix time.

    Source: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    """
    shifted = at_unix_s // DAY_S + _DAYS_TO_1970
    era, day_of_era = divmod(shifted, _DAYS_IN_ERA)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    return year_of_era + 400 * era + (month <= 2), month, day


def write_utc(at_unix_s: int) -> str:
    """Return a Unix time as ``2026-11-30T10:00Z``, with seconds only where there are any."""
    year, month, day = date_of(at_unix_s)
    hour, rest = divmod(at_unix_s % DAY_S, HOUR_S)
    minute, second = divmod(rest, 60)
    seconds = f":{second:02d}" if second else ""
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}{seconds}Z"
