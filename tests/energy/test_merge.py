import pytest

from nodeserve.energy.ledger_rows import LedgerRows
from nodeserve.energy.merge import MeterSpan, Part, merge
from nodeserve.energy.report import By, make_report
from nodeserve.energy.utc import HOUR_S
from nodeserve.errors import ConfigError
from tests.support.energy_rows import TEN, a_meter, an_energy, some_factors, some_tokens

TEN_MS = TEN * 1_000
HOUR_MS = 3_600_000


def a_span(begin=0.0, end=1.0, meter="GPU-1", kind="gpu"):
    begin_ms, end_ms = (TEN_MS + int(hours * HOUR_MS) for hours in (begin, end))
    return MeterSpan(meter=meter, kind=kind, begin_unix_ms=begin_ms, end_unix_ms=end_ms)


def a_part(name, node="n1", *spans, node_id=None, rows=None):
    return Part(
        name=name,
        node_id=node_id or f"id-of-{node}",
        node=node,
        spans=spans,
        rows=rows or LedgerRows(energy=[], meters=[], tokens=[]),
    )


def rows_of(node, zone, meter, mj):
    where = {"node": node, "zone": zone}
    return LedgerRows(
        energy=[an_energy(mj, meter=meter, **where)],
        meters=[a_meter(mj, 10, meter=meter, **where)],
        tokens=[some_tokens(5, 5, **where)],
    )


def refusal(*parts):
    with pytest.raises(ConfigError) as caught:
        merge(parts)
    return str(caught.value)


def test_nodes_of_different_gpus_and_regions_come_into_one_report():
    one = a_part("a.db", "n1", a_span(), rows=rows_of("n1", "DEU", "GPU-1", 1_000))
    two = a_part("b.db", "n2", a_span(meter="GPU-2"), rows=rows_of("n2", "FRA", "GPU-2", 500))
    merged = merge([one, two])
    made = make_report(merged, By.ZONE, some_factors(), until_unix_s=TEN + HOUR_S)
    assert {line.name: line.metered_mj for line in made.lines} == {"DEU": 1_010, "FRA": 510}
    assert made.total.metered_mj == 1_520
    assert made.total.tokens.served == 20
    assert {use.factor_zone for use in made.total.carbon.uses} == {"DEU", "FRA"}


def test_ledgers_of_one_node_may_follow_each_other_within_an_hour():
    first = LedgerRows(energy=[an_energy(60)], meters=[a_meter(60, 1)], tokens=[])
    then = LedgerRows(energy=[an_energy(40)], meters=[a_meter(40, 2)], tokens=[])
    parts = (
        a_part("old.db", "n1", a_span(0, 0.5), rows=first),
        a_part("new.db", "n1", a_span(0.5, 1), rows=then),
    )
    merged = merge(parts)
    assert [row.metered_mj for row in merged.meters] == [103]
    made = make_report(merged, By.LISTENER, some_factors(), until_unix_s=TEN + HOUR_S)
    assert made.total.metered_mj == 103


def test_the_same_ledger_twice_is_refused_by_name():
    said = refusal(a_part("a.db", "n1", a_span()), a_part("copy.db", "n1", a_span()))
    assert said == (
        "a.db and copy.db: both have meter GPU-1 of node n1 from 2026-03-10T10:00Z to "
        "2026-03-10T11:00Z; name each ledger once"
    )


def test_ledgers_that_overlap_by_a_part_are_refused():
    parts = (
        a_part("a.db", "n1", a_span(0, 2)),
        a_part("c.db", "n2", a_span(meter="GPU-9")),
        a_part("b.db", "n1", a_span(1.5, 3)),
    )
    assert refusal(*parts).startswith(
        "a.db and b.db: both have meter GPU-1 of node n1 from 2026-03-10T11:30Z to"
    )


def test_a_gpu_cannot_be_in_two_nodes_at_once():
    said = refusal(a_part("a.db", "n1", a_span()), a_part("b.db", "n2", a_span()))
    assert "both have meter GPU-1 of nodes n1 and n2 from" in said
    merge([a_part("a.db", "n1", a_span(0, 1)), a_part("b.db", "n2", a_span(1, 2))])


def test_every_node_may_have_a_cpu_package_0():
    cpu = a_span(meter="cpu-package-0", kind="cpu")
    merge([a_part("a.db", "n1", cpu), a_part("b.db", "n2", cpu)])
    assert "cpu-package-0" in refusal(a_part("a.db", "n1", cpu), a_part("b.db", "n1", cpu))


def test_two_nodes_of_one_name_are_refused():
    said = refusal(a_part("a.db", node_id="x"), a_part("b.db", node_id="y"))
    assert said == (
        "a.db and b.db: are of two nodes (x and y) that are both named n1; give one another name"
    )


def test_ledgers_of_one_node_without_windows_cannot_be_told_apart():
    assert "no window tells their times apart" in refusal(a_part("a.db"), a_part("b.db"))
