"""Read intensities: the shipped yearly table, an operator's series, a command's output.

A series is a CSV file whose first line names its columns, in any order::

    zone,start_utc,end_utc,g_per_kwh,kind,scope,estimated,source,licence,vintage

Lines that begin with ``#``, and empty ones, are left out.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Final, TypeVar

from nodeserve.energy.intensity import (
    WORLD,
    Factor,
    Intensities,
    Interval,
    Kind,
    Origin,
    Scope,
    Tier,
    Yearly,
)
from nodeserve.energy.utc import DAY_S, HOUR_S, parse_utc, write_utc
from nodeserve.errors import ConfigError

SERIES_COLUMNS: Final = (
    *("zone", "start_utc", "end_utc", "g_per_kwh", "kind", "scope", "estimated"),
    *("source", "licence", "vintage"),
)
TABLE_COLUMNS: Final = (
    *("zone", "alias", "year", "g_per_kwh", "kind", "scope", "source", "vintage", "licence"),
)
MAX_G_PER_KWH: Final = 2_000
"""No plant emits more: oil shale and lignite come to some 1,200; a larger one is another unit."""

_SHORTEST_DAY_S: Final = DAY_S - HOUR_S
"""A local day on which the clocks are put forward."""

_NUMBER: Final = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_YES: Final = ("true", "yes", "1")
_NO: Final = ("false", "no", "0", "")

E = TypeVar("E", Kind, Scope)


def parse_table(text: str, name: str) -> list[Yearly]:
    """Return the rows of a yearly table.

    Raises:
        ConfigError: A line is wrong, or repeats another one's zone, year and source.
    """
    found: dict[tuple[str, int, str], int] = {}
    rows: list[Yearly] = []
    for at, row in _rows(text, name, TABLE_COLUMNS):
        if not re.fullmatch(r"\d{4}", row["year"]):
            raise ConfigError(f"{at}: year is {row['year']!r}: write four digits")
        yearly = Yearly(
            zone=row["zone"],
            alias=row["alias"],
            year=int(row["year"]),
            g_per_kwh=_intensity(row["g_per_kwh"], at),
            kind=_one_of(Kind, row, "kind", at),
            scope=_one_of(Scope, row, "scope", at),
            origin=_origin(row, at),
        )
        key = (yearly.zone, yearly.year, yearly.origin.source)
        if key in found:
            raise ConfigError(f"{at}: repeats line {found[key]}; drop one of them")
        found[key] = at.line
        rows.append(yearly)
    return rows


def parse_series(text: str, name: str) -> list[Interval]:
    """Return an operator's series.

    Intervals are half-open, in UTC: an hour or parts of it, or at least a day. Those of one zone
    and kind may not overlap, unless they are of another grain: months may lie below hours, for
    where an hour is missing.

    Raises:
        ConfigError: A line is wrong, or an interval overlaps another one; file and line are named.
    """
    read: list[tuple[_At, Interval]] = []
    for at, row in _rows(text, name, SERIES_COLUMNS):
        interval = Interval(
            zone=row["zone"],
            begin_unix_s=_time(row, "start_utc", at),
            end_unix_s=_time(row, "end_utc", at),
            g_per_kwh=_intensity(row["g_per_kwh"], at),
            kind=_one_of(Kind, row, "kind", at),
            scope=_one_of(Scope, row, "scope", at),
            is_estimate=_is_yes(row["estimated"], at),
            origin=_origin(row, at),
        )
        if not interval.zone:
            raise ConfigError(f"{at}: zone is empty; name the zone, such as DEU")
        _check_length(interval, at)
        read.append((at, interval))
    _refuse_overlaps(read)
    return [interval for _, interval in read]


def parse_output(text: str, name: str) -> tuple[list[Interval], Factor | None]:
    """Return what a command has printed: one number in g/kWh, or a series as in a file.

    A number says nothing of where it is from: it is taken for an average of unknown vintage that
    stands for all hours, and called an estimate.

    Raises:
        ConfigError: It is neither.
    """
    if not _NUMBER.fullmatch(text.strip()):
        return parse_series(text, name), None
    at = _At(name, 1)
    origin = Origin(source=name, vintage="unknown", licence="unknown")
    constant = Factor(
        zone="any",
        g_per_kwh=_intensity(text.strip(), at),
        tier=Tier.CONSTANT,
        kind=Kind.AVERAGE,
        scope=Scope.LIFECYCLE,
        is_estimate=True,
        origin=origin,
    )
    return [], constant


def require_averages(intervals: Sequence[Interval], name: str) -> None:
    """Refuse a series for the books that has nothing to book.

    Raises:
        ConfigError: It has intervals, and all of them are marginal.
    """
    if intervals and all(interval.kind is Kind.MARGINAL for interval in intervals):
        raise ConfigError(
            f"{name}: all {len(intervals)} intervals are marginal, which only say when to run; "
            "the books need kind=average"
        )


def known_zones(yearly: Sequence[Yearly]) -> list[str]:
    """Return the zones of a table, without the world."""
    return sorted({row.zone for row in yearly} - {WORLD})


def make_intensities(
    table: str, series: Sequence[Interval] = (), constant: Factor | None = None
) -> Intensities:
    """Return the shipped table's intensities with an operator's laid over them."""
    return Intensities(parse_table(table, "intensity_yearly.csv"), series, constant)


class _At:
    """A line of a file, as messages name it."""

    def __init__(self, name: str, line: int) -> None:
        self.name, self.line = name, line

    def __str__(self) -> str:
        return f"{self.name}:{self.line}"


def _rows(text: str, name: str, columns: Sequence[str]) -> Iterator[tuple[_At, Mapping[str, str]]]:
    headings: list[str] | None = None
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        at = _At(name, number)
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise ConfigError(f"{at}: is no CSV: {error}") from error
        if headings is None:
            headings = cells
            missing = [column for column in columns if column not in cells]
            if missing:
                raise ConfigError(f"{at}: lacks the columns {', '.join(missing)}")
            continue
        if len(cells) != len(headings):
            raise ConfigError(
                f"{at}: has {len(cells)} cells, the heading has {len(headings)}; "
                "quote cells that hold a comma"
            )
        yield at, dict(zip(headings, cells, strict=True))
    if headings is None:
        raise ConfigError(f"{name}: is empty; the first line names the columns {','.join(columns)}")


def _intensity(text: str, at: _At) -> Fraction:
    if not _NUMBER.fullmatch(text):
        raise ConfigError(f"{at}: g_per_kwh is {text!r}: write a number such as 342.06")
    value = Fraction(text)
    if value > MAX_G_PER_KWH:
        raise ConfigError(
            f"{at}: g_per_kwh is {text}, at most {MAX_G_PER_KWH} can be; is it in kg or per MWh?"
        )
    return value


def _time(row: Mapping[str, str], column: str, at: _At) -> int:
    try:
        return parse_utc(row[column])
    except ValueError as error:
        raise ConfigError(f"{at}: {column}: {error}") from error


def _one_of(kinds: type[E], row: Mapping[str, str], column: str, at: _At) -> E:
    try:
        return kinds(row[column])
    except ValueError:
        known = " or ".join(kinds)
        raise ConfigError(f"{at}: {column} is {row[column]!r}: write {known}") from None


def _is_yes(text: str, at: _At) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ConfigError(f"{at}: estimated is {text!r}: write true or false")
    return text.lower() in _YES


def _origin(row: Mapping[str, str], at: _At) -> Origin:
    if not row["source"]:
        raise ConfigError(f"{at}: source is empty; an intensity without its source is none")
    return Origin(
        source=row["source"],
        vintage=row["vintage"] or "unknown",
        licence=row["licence"] or "unknown",
    )


def _check_length(interval: Interval, at: _At) -> None:
    length_s = interval.end_unix_s - interval.begin_unix_s
    if length_s <= 0:
        raise ConfigError(f"{at}: {_span(interval)} ends before it has begun: end it later")
    if HOUR_S < length_s < _SHORTEST_DAY_S:
        raise ConfigError(
            f"{at}: {_span(interval)} lasts {length_s // 60} minutes: write an hour, parts of one, "
            "or whole days"
        )


def _refuse_overlaps(read: Sequence[tuple[_At, Interval]]) -> None:
    last: dict[tuple[str, Kind, Tier], tuple[_At, Interval]] = {}
    for at, interval in sorted(read, key=lambda one: one[1].begin_unix_s):
        key = (interval.zone, interval.kind, interval.grain)
        before = last.get(key)
        if before is not None and interval.begin_unix_s < before[1].end_unix_s:
            raise ConfigError(
                f"{at}: {_span(interval)} overlaps line {before[0].line}, {_span(before[1])}; "
                "let each interval end where the next one begins"
            )
        last[key] = (at, interval)


def _span(interval: Interval) -> str:
    begin, end = write_utc(interval.begin_unix_s), write_utc(interval.end_unix_s)
    return f"{interval.zone} {interval.kind} from {begin} to {end}"
