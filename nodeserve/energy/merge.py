"""Put the ledgers of several nodes together, so that nothing is counted twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.rows import MeterRow
from nodeserve.energy.utc import write_utc
from nodeserve.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSpan:
    """From when to when a ledger has windows of a meter; the end is not part of it."""

    meter: str
    kind: str
    begin_unix_ms: int
    end_unix_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One ledger: the file, whose it is, what it covers, and its rows.

    ``node_id`` is the ledger's own and unique; ``node`` is what its rows call the node.
    """

    name: str
    node_id: str
    node: str
    spans: Sequence[MeterSpan]
    rows: LedgerRows


def merge(parts: Sequence[Part]) -> LedgerRows:
    """Return the rows of all ledgers together.

    Ledgers of one node may follow each other, even within an hour.

    Raises:
        ConfigError: A ledger is there twice, two cover the same time of the same node or of the
            same GPU, or two nodes have one name; the files are named.
    """
    for one, other in combinations(parts, 2):
        _refuse_overlap(one, other)
        if one.node == other.node and one.node_id != other.node_id:
            raise ConfigError(
                f"{one.name} and {other.name}: are of two nodes ({one.node_id} and "
                f"{other.node_id}) that are both named {one.node}; give one another name"
            )
    return LedgerRows(
        energy=[row for part in parts for row in part.rows.energy],
        meters=_joined(row for part in parts for row in part.rows.meters),
        tokens=[row for part in parts for row in part.rows.tokens],
    )


def _refuse_overlap(one: Part, other: Part) -> None:
    same_node = one.node_id == other.node_id
    if same_node and not one.spans and not other.spans:
        # Without meters there is no time to compare, and the rows may well be the same.
        raise ConfigError(
            f"{one.name} and {other.name}: are both of node {one.node} ({one.node_id}), and no "
            "window tells their times apart; name each ledger once"
        )
    by_meter = {span.meter: span for span in other.spans}
    for span in one.spans:
        twin = by_meter.get(span.meter)
        # A GPU's UUID is its own in the world; `cpu-package-0` is in every machine.
        if twin is None or not (same_node or span.kind == "gpu"):
            continue
        begin = max(span.begin_unix_ms, twin.begin_unix_ms)
        end = min(span.end_unix_ms, twin.end_unix_ms)
        if begin < end:
            whose = f"node {one.node}" if same_node else f"nodes {one.node} and {other.node}"
            raise ConfigError(
                f"{one.name} and {other.name}: both have meter {span.meter} of {whose} from "
                f"{write_utc(begin // 1_000)} to {write_utc(end // 1_000)}; name each ledger once"
            )


def _joined(rows: Iterable[MeterRow]) -> list[MeterRow]:
    """Add up the rows of a meter's hour that two ledgers have parts of."""
    found: dict[tuple[str, str, int, str], MeterRow] = {}
    for row in rows:
        key = (row.node, row.zone, row.hour_unix_s, row.meter)
        known = found.get(key)
        found[key] = row if known is None else _sum(known, row)
    return list(found.values())


def _sum(one: MeterRow, other: MeterRow) -> MeterRow:
    return replace(
        one,
        metered_mj=one.metered_mj + other.metered_mj,
        allocated_mj=one.allocated_mj + other.allocated_mj,
        idle_mj=one.idle_mj + other.idle_mj,
        quarantine_mj=one.quarantine_mj + other.quarantine_mj,
        metered_s=one.metered_s + other.metered_s,
        estimated_mj=one.estimated_mj + other.estimated_mj,
    )
