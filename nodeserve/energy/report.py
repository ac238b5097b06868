"""Put a ledger's rows together into a report whose totals equal the sums of its lines.

Idle energy, and the making of the hardware, are borne by the requests of the same node and hour
by the energy that they used: SCI counts what is provisioned. By GPU each has its own.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.ledger_rows import SYSTEM_MARK, Cell, Column, LedgerRows, Piece, cells_of
from nodeserve.energy.report_lines import Line, TokenSums
from nodeserve.energy.report_sums import Factors, Sums
from nodeserve.energy.rows import MeterRow, TokenRow
from nodeserve.energy.sci import embodied_g, find_embodied
from nodeserve.energy.units import micrograms
from nodeserve.energy.utc import HOUR_S, write_utc
from nodeserve.errors import InvariantError

TOTAL: Final = "total"


class By(enum.StrEnum):
    """What a report has a line for."""

    LISTENER = "listener"
    MODEL = "model"
    GPU = "gpu"
    HOUR = "hour"
    ROLE = "role"
    NODE = "node"
    ZONE = "zone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Lines in their order, and the total.

    ``seconds`` is how long the report's hours were metered, or are, where nothing was.
    ``unknown_embodied`` are the devices whose making is not known; with any, it is not for all.
    """

    by: By
    lines: Sequence[Line]
    total: Line
    seconds: float
    unknown_embodied: Sequence[str]


def make_report(rows: LedgerRows, by: By, factors: Factors, *, until_unix_s: int) -> Report:
    """Return the report of ``rows`` with a line for each listener, model or what ``by`` says.

    ``until_unix_s`` is when the rows end: the last hour may be a part of one.

    Raises:
        InvariantError: The rows contradict each other, so the ledger has to be verified; or the
            lines do not add up to the total, which would be a bug.
    """
    cells = cells_of(rows)
    unknown = sorted({name for cell in cells for name in _unknown_embodied(cell, factors)})
    lines_of, total_of = Sums(factors, has_tokens=by is not By.GPU), Sums(factors, has_tokens=True)
    key_of_piece, key_of_tokens = _PIECE_KEYS[by], _TOKEN_KEYS.get(by)
    for cell in cells:
        estimated = {meter.meter for meter in cell.meters if meter.estimated_mj}
        for piece in _energy(cell, by):
            is_estimate = piece.meter in estimated
            total_of.add_energy(TOTAL, piece, is_estimate=is_estimate)
            name = key_of_piece(piece)
            if piece.amount or not name.startswith(SYSTEM_MARK):
                lines_of.add_energy(name, piece, is_estimate=is_estimate)
        for piece in _embodied(cell, by, factors):
            lines_of.add_embodied(key_of_piece(piece), piece)
            total_of.add_embodied(TOTAL, piece)
    metered = {(cell.place.node, cell.place.hour_unix_s) for cell in cells if cell.meters}
    for row in rows.tokens:
        is_metered = (row.node, row.hour_unix_s) in metered
        total_of.add_tokens(TOTAL, row, is_metered=is_metered)
        if key_of_tokens is not None:
            lines_of.add_tokens(key_of_tokens(row), row, is_metered=is_metered)
    seconds = _seconds(rows, until_unix_s)
    lines = lines_of.lines(_Rates(seconds, by), knows_embodied=not unknown)
    found = total_of.lines(_Rates(seconds, By.LISTENER), knows_embodied=not unknown)
    total = found[0] if found else _empty_line()
    _check(by, lines, total)
    return Report(
        by=by,
        lines=sorted(lines, key=lambda line: (line.name.startswith(SYSTEM_MARK), line.name)),
        total=total,
        seconds=sum(seconds.values()),
        unknown_embodied=unknown,
    )


def _gpu(node: str, meter: str) -> str:
    return f"{node}/{meter}"


_PIECE_KEYS: Final[Mapping[By, Callable[[Piece], str]]] = {
    By.LISTENER: lambda piece: piece.listener,
    By.MODEL: lambda piece: piece.model,
    By.ROLE: lambda piece: piece.role,
    By.GPU: lambda piece: _gpu(piece.place.node, piece.meter),
    By.HOUR: lambda piece: write_utc(piece.place.hour_unix_s),
    By.NODE: lambda piece: piece.place.node,
    By.ZONE: lambda piece: piece.place.zone,
}

_TOKEN_KEYS: Final[Mapping[By, Callable[[TokenRow], str]]] = {
    By.LISTENER: lambda row: row.listener,
    By.MODEL: lambda row: row.model,
    By.ROLE: lambda row: row.role,
    By.HOUR: lambda row: write_utc(row.hour_unix_s),
    By.NODE: lambda row: row.node,
    By.ZONE: lambda row: row.zone,
}


class _Rates(dict[str, float]):
    """The time of each line: an hour has its own, every other line that of the whole report."""

    def __init__(self, seconds: Mapping[int, float], by: By) -> None:
        self._whole = sum(seconds.values())
        super().__init__(
            {write_utc(hour): time for hour, time in seconds.items()} if by is By.HOUR else {}
        )

    def __missing__(self, name: str) -> float:
        return self._whole


def _energy(cell: Cell, by: By) -> Iterator[Piece]:
    """Yield the place's energy; idle energy is borne by requests, or stays with its GPU."""
    idle_mj = 0
    for piece in cell.pieces():
        if piece.column is Column.IDLE and by is not By.GPU:
            idle_mj += piece.amount
        else:
            yield piece
    if idle_mj:
        yield from cell.spread(idle_mj, Column.IDLE)


def _embodied(cell: Cell, by: By, factors: Factors) -> Iterator[Piece]:
    """Yield what the making of the place's devices stands for, in micrograms."""
    total_ug = 0
    for meter in _devices(cell):
        known = find_embodied(meter.name, factors.embodied)
        if known is None:
            continue
        mass_ug = round(micrograms(embodied_g(round(meter.metered_s * 1_000), known)))
        if by is By.GPU:
            name = meter.meter
            yield Piece(cell.place, name, name, name, name, Column.IDLE, mass_ug)
        total_ug += mass_ug
    if by is not By.GPU and total_ug:
        yield from cell.spread(total_ug, Column.IDLE)


def _devices(cell: Cell) -> list[MeterRow]:
    """Return what embodied carbon is counted for; a GPU's has its server's, CPUs and all, in it."""
    gpus = [meter for meter in cell.meters if meter.kind != "cpu"]
    return gpus or cell.meters


def _unknown_embodied(cell: Cell, factors: Factors) -> Iterator[str]:
    for meter in _devices(cell):
        if find_embodied(meter.name, factors.embodied) is None:
            yield meter.name


def _seconds(rows: LedgerRows, until_unix_s: int) -> dict[int, float]:
    """Return how long each hour was metered; where nothing was, how much of it has passed."""
    metered: dict[int, float] = {}
    for meter in rows.meters:
        longest = max(metered.get(meter.hour_unix_s, 0.0), meter.metered_s)
        metered[meter.hour_unix_s] = min(longest, float(HOUR_S))
    for hour in {row.hour_unix_s for row in rows.tokens}:
        metered.setdefault(hour, 0.0)
    return {
        hour: time or float(min(max(until_unix_s - hour, 0), HOUR_S))
        for hour, time in sorted(metered.items())
    }


def _empty_line() -> Line:
    return Line(
        name=TOTAL,
        seconds=0.0,
        tokens=TokenSums(),
        energy=None,
        is_estimate=False,
        phases={},
        carbon=None,
        embodied_ug=None,
        cost=None,
        electricity_cost=None,
    )


def _check(by: By, lines: Sequence[Line], total: Line) -> None:
    """Refuse to show a report whose lines are not all of its total."""
    pairs = {
        f"{column.value} mJ": (sum(line.part_mj(column) or 0 for line in lines), part)
        for column in Column
        if (part := total.part_mj(column)) is not None
    }
    if by is not By.GPU:
        served = sum(line.tokens.served for line in lines if line.tokens is not None)
        pairs["tokens"] = (served, total.tokens.served if total.tokens is not None else 0)
    if total.carbon is not None:
        carbon = sum(line.carbon.mass_ug for line in lines if line.carbon is not None)
        pairs["ug of CO2e"] = (carbon, total.carbon.mass_ug)
    if total.embodied_ug is not None:
        pairs["ug embodied"] = (sum(line.embodied_ug or 0 for line in lines), total.embodied_ug)
    if total.cost is not None and by is not By.GPU:
        pairs["millionths of cost"] = (sum(line.cost or 0 for line in lines), total.cost)
    for what, (parts, whole) in pairs.items():
        if parts != whole:
            raise InvariantError(
                f"report by {by}: lines have {parts} {what} together, the total has {whole}; "
                "report this bug"
            )
