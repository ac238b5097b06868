from nodeserve.kv.slot_table import NO_SLOT, SlotPhase, SlotTable
from nodeserve.kv.tier_events import ShowSlot, shown_slot
from tests.kv.tiers import key


def test_a_slot_is_shown_with_the_block_before_it():
    table = SlotTable(2)
    table.reserve(0, key("a"), tenant=7, writer=1, parent=NO_SLOT)
    table.reserve(1, key("b"), tenant=7, writer=1, parent=0)
    table.publish(1)
    assert shown_slot(table, 0) == ShowSlot(0, SlotPhase.RESERVED, key("a"), 7)
    assert shown_slot(table, 1) == ShowSlot(1, SlotPhase.READY, key("b"), 7, key("a"))
    table.abandon(0)
    assert shown_slot(table, 1) == ShowSlot(1, SlotPhase.READY, key("b"), 7)
