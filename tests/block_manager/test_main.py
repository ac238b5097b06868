"""The block manager's process, killed and followed by another on the same memory."""

import random

import pytest

from nodeserve.wire.kv_tier import ABSENT, KvLookup, KvReserve, KvWho
from tests.block_manager.nodes import WITHIN_S, block_of
from tests.kv.tiers import key, keys


def test_successor_finds_what_was_ready_and_not_what_was_reserved(node) -> None:
    one = node.engine(1).join()
    ready = one.store("a", "b")
    (half,) = one.reserve("half")
    node.status()
    node.kill()
    node.start()
    one.say(KvLookup(call_id=99, listener="l", keys=keys("a")))
    assert one.hear(KvWho)
    one.join()
    assert one.look_up("a", "b", "half") == [*ready, ABSENT]
    assert one.read(ready[1]) == block_of(b"b-")
    host = node.status().tiers[0]
    assert (host.quarantined, host.pinned) == (1, 2)
    assert half not in ready


def test_an_engine_goes_on_with_what_it_was_reading_and_writing_across_a_restart(node) -> None:
    one, two = node.engine(1).join(), node.engine(2).join()
    one.store("a")
    (reading,) = one.look_up("a")
    (writing,) = one.reserve("half")
    node.kill()
    node.start()
    two.join()
    assert node.status().state == "adopting"
    slots = {"reading": reading.to_bytes(4, "little"), "writing": writing.to_bytes(4, "little")}
    one.join(**slots, writing_keys=key("half"))
    assert node.status().state == "serving"
    one.write(writing, b"whole")
    one.publish([writing])
    node.status_when(lambda status: status.tiers[0].stores == 1)
    assert two.look_up("a", "half") == [reading, writing]
    assert two.read(writing) == block_of(b"whole")


@pytest.mark.parametrize("point", range(8))
def test_killed_at_any_point_nothing_is_found_that_was_not_published(node, point) -> None:
    """Engines talk on while it dies; whatever a successor finds is whole."""
    source = random.Random(point)
    one, two = node.engine(1).join(), node.engine(2).join()
    for number in range(source.randrange(40)):
        slots = one.reserve(*range(number, number + 6))
        given = [(slot, number + at) for at, slot in enumerate(slots) if slot != ABSENT]
        for slot, name in given:
            one.write(slot, f"{name}-".encode())
        one.publish([slot for slot, _ in given])
        two.say(KvLookup(call_id=1000 + number, listener="l", keys=keys(*range(number + 6))))
    one.say(KvReserve(call_id=5000, listener="l", keys=keys("x", "y")))
    node.kill()
    node.start()
    three = node.engine(3).join()
    found = three.look_up(*range(50), "x", "y")
    assert found[-2:] == [ABSENT, ABSENT]
    directory = three.directory()
    for name, slot in enumerate(found[:-2]):
        if slot != ABSENT:
            directory.require(slot, key(name))
            assert three.read(slot) == block_of(f"{name}-".encode())
    directory.close()


def test_an_address_in_use_ends_the_process_with_a_clear_error(nodes, tmp_path) -> None:
    node = nodes().start()
    first, second = node.process, node.spawn()
    _, errors = second.communicate(timeout=WITHIN_S)
    assert second.returncode != 0
    assert "is live: another process listens there" in errors
    first.kill()
    first.communicate(timeout=WITHIN_S)


def test_it_ends_when_told_and_leaves_what_was_ready_to_its_successor(node) -> None:
    one = node.engine(1).join()
    slots = one.store("a")
    node.status_when(lambda status: status.tiers[0].stores == 1)
    node.stop()
    node.start()
    assert node.engine(2).join().look_up("a") == slots


def test_a_second_death_in_a_row_still_waits_for_the_engines_of_the_first(node) -> None:
    one, two = node.engine(1).join(), node.engine(2).join()
    one.store("a")
    node.status_when(lambda status: status.tiers[0].stores == 1)
    for _ in range(2):
        node.kill()
        node.start()
        two.join()
        assert node.status().state == "adopting"
    node.gone(1)
    assert node.status().state == "serving"
