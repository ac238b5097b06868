"""Rows of one or several ledgers, and the pieces of energy that reports are made of.

A piece is whole: it is of one node, hour, meter and, where anybody can be named, of one listener,
model and role. However pieces are grouped, they add up to what was metered.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nodeserve.energy.apportion import apportion
from nodeserve.energy.rows import EnergyRow, MeterRow, TokenRow
from nodeserve.energy.utc import write_utc
from nodeserve.errors import InvariantError

UNATTRIBUTED: Final = "#unattributed"
IDLE: Final = "#idle"
QUARANTINE: Final = "#quarantine"
SYSTEM_MARK: Final = "#"
"""What names of accounts begin with that no listener, model or role can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRows:
    """What a ledger has for a time."""

    energy: Sequence[EnergyRow]
    meters: Sequence[MeterRow]
    tokens: Sequence[TokenRow]


class Column(enum.Enum):
    """What a piece of energy was spent on."""

    USEFUL = "useful"
    SCRAP = "scrap"
    UNATTRIBUTED = "unattributed"
    IDLE = "idle"
    QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Place:
    """Whose hour it was."""

    node: str
    zone: str
    hour_unix_s: int


@dataclass(frozen=True, slots=True)
class Piece:
    """An amount of one kind in one place: mJ here, micrograms for embodied carbon."""

    place: Place
    listener: str
    model: str
    role: str
    meter: str
    column: Column
    amount: int


@dataclass(slots=True)
class Cell:
    """All rows of energy of one place."""

    place: Place
    energy: list[EnergyRow]
    meters: list[MeterRow]

    def pieces(self) -> Iterator[Piece]:
        """Yield all energy of the place, idle energy on the meter that it was drawn by.

        Raises:
            InvariantError: Requests were given more than the meter counted.
        """
        used = dict.fromkeys((meter.meter for meter in self.meters), 0)
        for row in self.energy:
            if row.meter not in used:
                raise InvariantError(
                    f"{self._where(row.meter)}: requests have used energy of a meter without an "
                    "account; run `nodeserve energy verify`"
                )
            used[row.meter] += row.useful_mj + row.scrap_mj
            yield from self._of_requests(row)
        for meter in self.meters:
            rest = meter.allocated_mj - used[meter.meter]
            apart = meter.allocated_mj + meter.idle_mj + meter.quarantine_mj
            if rest < 0 or apart != meter.metered_mj:
                raise InvariantError(
                    f"{self._where(meter.meter)}: metered {meter.metered_mj} mJ, booked {apart} "
                    f"mJ, of which requests have used {used[meter.meter]} of "
                    f"{meter.allocated_mj} mJ; run `nodeserve energy verify`"
                )
            yield self._of_nobody(UNATTRIBUTED, meter.meter, Column.UNATTRIBUTED, rest)
            yield self._of_nobody(IDLE, meter.meter, Column.IDLE, meter.idle_mj)
            yield self._of_nobody(QUARANTINE, meter.meter, Column.QUARANTINE, meter.quarantine_mj)

    def spread(self, amount: int, column: Column) -> Iterator[Piece]:
        """Yield what the place's requests must bear of an amount, by the energy they used.

        Where there were none, nobody bears it: it stays with ``#idle``.
        """
        rows = {
            index: row.useful_mj + row.scrap_mj
            for index, row in enumerate(self.energy)
            if not row.listener.startswith(SYSTEM_MARK)
        }
        if not any(rows.values()):
            yield self._of_nobody(IDLE, "", column, amount)
            return
        for index, part in apportion(amount, rows).items():
            row = self.energy[index]
            yield Piece(self.place, row.listener, row.model, row.role, row.meter, column, part)

    def _of_requests(self, row: EnergyRow) -> Iterator[Piece]:
        parts = ((Column.USEFUL, row.useful_mj), (Column.SCRAP, row.scrap_mj))
        for column, amount in parts:
            if row.listener.startswith(SYSTEM_MARK):
                yield self._of_nobody(row.listener, row.meter, Column.UNATTRIBUTED, amount)
            else:
                yield Piece(
                    self.place, row.listener, row.model, row.role, row.meter, column, amount
                )

    def _of_nobody(self, account: str, meter: str, column: Column, amount: int) -> Piece:
        return Piece(self.place, account, account, account, meter, column, amount)

    def _where(self, meter: str) -> str:
        return f"ledger of {self.place.node}: meter {meter}, {write_utc(self.place.hour_unix_s)}"


def cells_of(rows: LedgerRows) -> list[Cell]:
    """Return the rows of energy by place, in order of hours and nodes.

    Raises:
        InvariantError: A meter has two rows for an hour.
    """
    cells: dict[Place, Cell] = {}
    for meter in rows.meters:
        cell = _cell_of(cells, meter)
        if any(meter.meter == other.meter for other in cell.meters):
            raise InvariantError(
                f"ledger of {meter.node}: meter {meter.meter} has two rows for "
                f"{write_utc(meter.hour_unix_s)}; run `nodeserve energy verify`"
            )
        cell.meters.append(meter)
    for row in rows.energy:
        _cell_of(cells, row).energy.append(row)
    return sorted(cells.values(), key=lambda cell: (cell.place.hour_unix_s, cell.place.node))


def _cell_of(cells: dict[Place, Cell], row: EnergyRow | MeterRow) -> Cell:
    place = Place(row.node, row.zone, row.hour_unix_s)
    return cells.setdefault(place, Cell(place, [], []))
