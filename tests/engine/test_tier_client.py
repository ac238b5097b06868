import pytest
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.clock import ManualClock
from nodeserve.engine import tier_client
from nodeserve.engine.tier_client import ANSWER_S, HELLO_EVERY_S, TierClient
from nodeserve.wire import kv_tier
from nodeserve.wire.kv_tier import (
    ABSENT,
    KvAbandon,
    KvFound,
    KvHello,
    KvLookup,
    KvPublish,
    KvRefused,
    KvRelease,
    KvReserve,
    KvReserved,
    KvWelcome,
    KvWho,
    join_slots,
)

HELLO = KvHello(
    worker="decode-0", generation=7, pid=1, model="/m", kv_format=b"f", block_bytes=4096
)
KEYS = b"a" * 32 + b"b" * 32
WAIT_MS = 5000


class BlockManager:
    """A real ROUTER that says what a test wants said."""

    def __init__(self, context, address):
        self.socket = open_socket(context, zmq.ROUTER)
        bind(self.socket, address)

    def heard(self):
        assert self.socket.poll(WAIT_MS), "nothing was said"
        identity, frame = self.socket.recv_multipart()
        assert identity == b"7"
        return kv_tier.decode_request(frame)

    def hears_nothing(self):
        return not self.socket.poll(20)

    def say(self, message):
        self.socket.send_multipart([b"7", kv_tier.encode_message(message)])

    def say_garbage(self):
        self.socket.send_multipart([b"7", b"\xc1"])


def welcome(generation=1):
    return KvWelcome(
        generation=generation,
        namespace=b"n" * 32,
        num_slots=8,
        slots_per_arena=8,
        slot_stride=4096,
        arenas=(),
        directory={},
    )


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


@pytest.fixture
def address(tmp_path):
    return f"ipc://{tmp_path}/tier"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def client(context, address, clock):
    made = TierClient(address, HELLO, clock, context)
    yield made
    made.close()


@pytest.fixture
def manager(context, address):
    made = BlockManager(context, address)
    yield made
    made.socket.close(linger=0)


def hear(client, manager, message):
    """Let the client take one message, whenever it comes."""
    manager.say(message)
    assert client._socket.poll(WAIT_MS)
    client.poll()


@pytest.fixture
def joined(client, manager):
    assert manager.heard() == HELLO
    hear(client, manager, welcome())
    return client


def test_nothing_is_asked_before_the_tier_is_there(client):
    assert client.tier is None
    assert client.lookup("api", KEYS, disk_s=0.0) is None
    assert client.reserve("api", KEYS, b"") is None


def test_a_lookup_is_answered_and_its_pins_given_back_once(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    assert manager.heard() == KvLookup(call_id=1, listener="api", keys=KEYS)
    assert not lookup.answered
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, ABSENT])))
    assert lookup.answered
    assert lookup.slots == [5, ABSENT]
    joined.release(lookup)
    joined.release(lookup)
    assert manager.heard() == KvRelease(call_ids=(1,))
    assert manager.hears_nothing()
    assert (joined.counts.hit_blocks, joined.counts.missed_blocks) == (1, 1)


def test_what_found_nothing_holds_no_pins(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([ABSENT, ABSENT])))
    assert lookup.answered
    joined.release(lookup)
    assert manager.hears_nothing()


def test_a_lookup_that_waits_for_the_disk_is_answered_by_the_second_message(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=1.0)
    assert manager.heard().deadline_s == lookup.disk_until_s
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, ABSENT]), num_pending=1))
    assert not lookup.answered
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, 6])))
    assert lookup.answered
    assert lookup.slots == [5, 6]


def test_nobody_waits_for_the_disk_of_a_block_manager_that_says_nothing(joined, manager, clock):
    lookup = joined.lookup("api", KEYS, disk_s=10.0)
    clock.advance(ANSWER_S)
    joined.poll()
    assert lookup.answered
    assert joined.tier is None


def test_a_block_manager_of_which_nothing_is_heard_is_greeted_again(joined, manager, clock):
    welcome = joined.welcome
    clock.advance(HELLO_EVERY_S)
    joined.poll()
    assert isinstance(manager.heard(), KvHello)
    hear(joined, manager, welcome)
    joined.poll()
    assert manager.hears_nothing()
    assert joined.welcome is welcome


def test_a_disk_past_its_deadline_leaves_what_the_host_has(joined, manager, clock):
    lookup = joined.lookup("api", KEYS, disk_s=1.0)
    manager.heard()
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, ABSENT]), num_pending=1))
    clock.advance(1.0 + ANSWER_S)
    joined.poll()
    assert lookup.answered
    assert lookup.slots == [5, ABSENT]
    assert joined.tier is not None
    assert isinstance(manager.heard(), KvHello)  # so long nothing was heard of it
    joined.release(lookup)
    assert manager.heard() == KvRelease(call_ids=(1,))


def test_silence_costs_one_deadline_and_then_nothing_is_asked_until_something_is_heard(
    joined, manager, clock
):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    clock.advance(ANSWER_S)
    joined.poll()
    assert lookup.answered
    assert lookup.slots == []
    assert joined.tier is None
    assert joined.lookup("api", KEYS, disk_s=0.0) is None
    assert manager.heard() == KvRelease(call_ids=(1,))
    clock.advance(HELLO_EVERY_S)
    joined.poll()
    assert manager.heard() == HELLO
    hear(joined, manager, welcome())
    assert joined.tier is not None


def test_a_lookup_released_before_its_answer_holds_nothing_after_it(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    joined.release(lookup)
    assert manager.heard() == KvRelease(call_ids=(1,))
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, 6])))
    assert not lookup.slots
    assert manager.hears_nothing()


def test_a_reservation_is_written_and_published(joined, manager):
    call = joined.reserve("api", KEYS, b"p" * 32)
    assert manager.heard() == KvReserve(call_id=1, listener="api", keys=KEYS, parent=b"p" * 32)
    assert joined.is_waiting
    hear(joined, manager, KvReserved(call_id=1, slots=join_slots([ABSENT, 3])))
    assert call.slots == [ABSENT, 3]
    assert joined.is_waiting
    joined.publish([3])
    assert not joined.is_waiting
    assert manager.heard() == KvPublish(slots=join_slots([3]))


def test_what_was_copied_is_told_with_the_next_release_and_publish_and_by_no_message_of_its_own(
    joined, manager
):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, 6])))
    joined.count_read(4096, 0.001)
    joined.count_read(4096, 0.0005)
    joined.count_written(4096, 0.002)
    assert manager.hears_nothing()
    joined.release(lookup)
    assert manager.heard() == KvRelease(call_ids=(1,), read_bytes=8192, read_us=1500)
    for told in (KvPublish(slots=b"", written_bytes=4096, written_us=2000), KvPublish(slots=b"")):
        joined.publish([])
        assert manager.heard() == told


def test_slots_that_come_too_late_are_given_back(joined, manager, clock):
    call = joined.reserve("api", KEYS, b"")
    manager.heard()
    clock.advance(ANSWER_S)
    joined.poll()
    assert call.answered
    assert call.slots == []
    hear(joined, manager, KvReserved(call_id=1, slots=join_slots([2, 3])))
    assert manager.heard() == KvAbandon(slots=join_slots([2, 3]))
    assert not joined.is_waiting


def test_a_new_block_manager_is_told_what_is_held(joined, manager):
    reading = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, 6])))
    joined.reserve("api", KEYS, b"")
    manager.heard()
    hear(joined, manager, KvReserved(call_id=2, slots=join_slots([ABSENT, 3])))
    unanswered = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()

    hear(joined, manager, KvWho())
    assert unanswered.answered
    assert unanswered.slots == []
    hello = manager.heard()
    assert hello.reading == join_slots([5, 6])
    assert (hello.writing, hello.writing_keys) == (join_slots([3]), b"b" * 32)
    hear(joined, manager, welcome(generation=2))
    joined.release(reading)
    assert manager.heard() == KvRelease(call_ids=(0,))


def test_what_is_released_while_a_successor_reads_our_hello_is_not_pinned_there_for_ever(
    joined, manager, clock
):
    reading = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    hear(joined, manager, KvFound(call_id=1, slots=join_slots([5, 6])))
    clock.advance(HELLO_EVERY_S)
    joined.poll()
    assert manager.heard().reading == join_slots([5, 6])
    joined.release(reading)
    assert manager.heard() == KvRelease(call_ids=(1,))  # a number that a successor does not know
    hear(joined, manager, welcome(generation=2))
    assert manager.heard() == KvRelease(call_ids=(0,))


def test_a_successor_that_welcomes_us_unasked_has_not_heard_our_calls(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    hear(joined, manager, welcome(generation=2))
    assert lookup.answered
    assert lookup.slots == []


def test_a_refused_engine_asks_nothing_more(client, manager, clock):
    manager.heard()
    hear(client, manager, KvRefused(reason="another model"))
    assert client.refusal == "another model"
    clock.advance(10 * HELLO_EVERY_S)
    client.poll()
    assert manager.hears_nothing()


def test_garbage_is_counted_and_changes_nothing(joined, manager):
    manager.say_garbage()
    assert joined._socket.poll(WAIT_MS)
    joined.poll()
    hear(joined, manager, KvFound(call_id=99, slots=b"abc"))
    assert joined.counts.refused_frames == 2
    assert joined.tier is not None


def test_calls_without_an_answer_are_bounded(joined, monkeypatch):
    monkeypatch.setattr(tier_client, "MAX_CALLS", 2)
    assert joined.lookup("api", KEYS, disk_s=0.0) is not None
    assert joined.reserve("api", KEYS, b"") is not None
    assert joined.lookup("api", KEYS, disk_s=0.0) is None
    assert joined.reserve("api", KEYS, b"") is None


def test_an_answer_that_is_about_to_come_is_waited_for_once(joined, manager):
    lookup = joined.lookup("api", KEYS, disk_s=0.0)
    manager.heard()
    joined.wait(lookup)
    assert not lookup.answered
    manager.say(KvFound(call_id=1, slots=join_slots([5, 6])))
    assert joined._socket.poll(WAIT_MS)
    joined.wait(lookup)
    assert not lookup.answered  # from here on only polls take it
    joined.poll()
    assert lookup.answered


def test_a_welcome_is_waited_for_no_longer_than_it_takes(client, manager):
    assert manager.heard() == HELLO
    manager.say(welcome())
    assert client.joined(WAIT_MS / 1e3) == welcome()
    assert client.joined(0.0) == welcome()


def test_who_is_refused_does_not_wait_for_a_welcome(client, manager):
    assert manager.heard() == HELLO
    manager.say(KvRefused(reason="no room"))
    assert client.joined(WAIT_MS / 1e3) is None
    assert client.refusal == "no room"


def test_a_welcome_that_does_not_come_is_not_waited_for_longer_than_was_said(client, clock):
    assert client.joined(0.0) is None
