from types import SimpleNamespace

import msgspec
import pytest

from nodeserve.ids import Generation
from nodeserve.lifecycle.process import Phase
from nodeserve.supervisor.tier_memory import KeptTierMemory, TierMemory
from tests.supervisor.estates import CONFIG, an_estate


def test_a_state_says_how_the_node_goes_on_and_with_what():
    wanted = msgspec.structs.replace(CONFIG, drain_deadline_s=5.0)
    state = an_estate().state(wanted, b"c1")
    assert (state.config, state.asked_by, state.num_reloads) == (wanted, b"c1", 3)
    assert list(state.node.slots.by_name) == list(an_estate().life.slots)
    assert sorted(state.fds()) == [3, 4, 5, 6]


def no_child(estate):
    slot = estate.life.slots["decode-0"]
    slot.begin(Generation(4))
    slot.life.phase = Phase.STARTING


@pytest.mark.parametrize(
    "busy",
    [
        lambda estate: setattr(estate.server, "is_readable", True),
        lambda estate: setattr(estate.desk, "is_answering", True),
        lambda estate: setattr(estate.outbox, "is_empty", False),
        no_child,
    ],
    ids=["message", "answer", "unsent", "being forked"],
)
def test_it_is_settled_only_when_nothing_is_on_its_way(busy):
    estate = an_estate()
    assert estate.is_settled()
    busy(estate)
    assert not estate.is_settled()


def test_a_process_that_is_there_may_be_starting():
    estate = an_estate()
    no_child(estate)
    estate.children.alive.add(4)
    assert estate.is_settled()


def test_the_host_tiers_memory_goes_on_and_so_do_the_dead_that_are_to_be_told_of():
    memory = TierMemory(host_bytes=1 << 30, arena_bytes=1 << 29, fds=[7, 8, 9])
    desk = SimpleNamespace(is_settled=True, gone=[4, 5])
    state = an_estate(memory=memory, tier_desk=desk).state(CONFIG, None)
    assert state.tier == KeptTierMemory(1 << 30, 1 << 29, [7, 8, 9], gone=[4, 5])
    assert sorted(state.fds()) == [3, 4, 5, 6, 7, 8, 9]
    desk.is_settled = False
    assert not an_estate(tier_desk=desk).is_settled()
