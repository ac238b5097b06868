import pytest
import zmq

from nodeserve.bus import ledger_client
from nodeserve.bus.ledger_client import PROBE_S, LedgerClient, LedgerSocket
from nodeserve.bus.sockets import bind, is_readable, open_socket, recv_now
from nodeserve.wire.accounting import (
    MAX_UNACKNOWLEDGED,
    EngineHello,
    LedgerAck,
    LedgerHello,
    ListenerUse,
    RequestsNoted,
    UseReported,
    WorkShape,
    decode_to_ledger,
    encode_message,
)
from nodeserve.wire.kinds import Role

HELLO = EngineHello(
    worker="decode-0",
    generation=7,
    role=Role.DECODE,
    meters=("gpu-0",),
    work=WorkShape(
        token_flops=1, pair_flops=1, kv_bytes=1, weight_bytes=1, flops_per_s=1, bytes_per_s=1
    ),
)


class Port:
    """A connection that takes up to ``room`` messages."""

    def __init__(self, room=10**6):
        self.room = room
        self.sent = []
        self.coming = []
        self.is_closed = False

    def send(self, frame):
        if len(self.sent) >= self.room:
            return False
        self.sent.append(decode_to_ledger(frame))
        return True

    def recv(self):
        return self.coming.pop(0) if self.coming else None

    def close(self):
        self.is_closed = True

    def answer(self, message):
        self.coming.append(encode_message(message))

    def numbers(self):
        sent, self.sent = self.sent, []
        return [getattr(message, "seq", "hello") for message in sent]


def note(seq):
    return RequestsNoted(generation=7, seq=seq)


@pytest.fixture
def port():
    return Port()


def test_messages_are_numbered_and_sent_once(port):
    client = LedgerClient(port)
    client.say(note)
    client.say(note)
    client.turn(0.0)
    client.turn(0.1)
    assert port.numbers() == [1, 2]


def test_the_greeting_goes_first(port):
    client = LedgerClient(port, HELLO)
    client.say(note)
    client.turn(0.0)
    assert port.numbers() == ["hello", 1]


def test_what_is_acknowledged_is_not_said_again(port):
    client = LedgerClient(port, HELLO)
    for _ in range(3):
        client.say(note)
    client.turn(0.0)
    port.numbers()
    port.answer(LedgerAck(seq=2))
    port.answer(LedgerHello(generation=9))
    client.turn(0.1)
    assert (port.numbers(), client.num_kept) == (["hello", 3], 1)


def test_what_does_not_go_now_goes_later_in_order():
    port = Port(room=2)
    client = LedgerClient(port)
    for _ in range(4):
        client.say(note)
    client.turn(0.0)
    assert port.numbers() == [1, 2]
    client.turn(0.1)
    assert port.numbers() == [3, 4]


def test_only_so_much_is_kept_and_the_oldest_goes(port):
    client = LedgerClient(port)
    for _ in range(MAX_UNACKNOWLEDGED + 2):
        client.say(note)
    client.turn(0.0)
    numbers = port.numbers()
    assert (numbers[0], len(numbers), client.num_forgotten) == (3, MAX_UNACKNOWLEDGED, 2)


def test_forgetting_what_was_sent_repeats_nothing(port):
    client = LedgerClient(port)
    for _ in range(MAX_UNACKNOWLEDGED):
        client.say(note)
    client.turn(0.0)
    port.numbers()
    client.say(note)
    client.turn(0.1)
    assert port.numbers() == [MAX_UNACKNOWLEDGED + 1]


@pytest.mark.parametrize(("hello", "probe"), [(None, 1), (HELLO, "hello")])
def test_a_silent_ledger_is_asked_whether_it_knows_us(port, hello, probe):
    client = LedgerClient(port, hello)
    client.say(note)
    client.say(note)
    client.turn(0.0)
    port.numbers()
    client.turn(PROBE_S - 0.1)
    assert port.numbers() == []
    client.turn(PROBE_S)
    client.turn(PROBE_S + 1)
    assert port.numbers() == [probe]


def test_what_was_never_sent_is_not_said_twice(port):
    client = LedgerClient(port)
    client.turn(0.0)
    client.say(note)
    client.turn(PROBE_S)
    assert port.numbers() == [1]


def test_only_so_many_bytes_are_kept(port, monkeypatch):
    size = len(encode_message(note(1)))
    monkeypatch.setattr(ledger_client, "MAX_KEPT_BYTES", 2 * size)
    client = LedgerClient(port)
    for _ in range(5):
        client.say(note)
    client.turn(0.0)
    assert (port.numbers(), client.num_forgotten) == ([4, 5], 3)
    port.answer(LedgerAck(seq=5))
    client.say(note)
    client.turn(0.1)
    assert port.numbers() == [6]


def test_a_ledger_that_is_heard_is_not_asked(port):
    client = LedgerClient(port, HELLO)
    client.turn(0.0)
    port.numbers()
    port.answer(LedgerAck(seq=0))
    client.turn(PROBE_S - 0.1)
    client.turn(PROBE_S + 0.1)
    assert port.numbers() == []


def test_what_is_reported_is_returned_and_garbage_counted(port):
    client = LedgerClient(port)
    use = UseReported(uses=(ListenerUse(listener="api", energy_mj=5, period_ends_unix_s=1.0),))
    port.answer(use)
    port.coming.append(b"garbage")
    assert (client.turn(0.0), client.num_bad_frames) == ([use], 1)


def test_a_ledger_that_comes_later_gets_all(tmp_path):
    tmp_path.chmod(0o700)
    address = f"ipc://{tmp_path}/ledger.sock"
    client = LedgerClient(LedgerSocket(address, 7), HELLO)
    client.say(note)
    client.turn(0.0)
    context = zmq.Context()
    router = open_socket(context, zmq.ROUTER)
    try:
        bind(router, address)
        assert router.poll(5000)
        frames = recv_now(router)
        assert (frames[0], decode_to_ledger(frames[1])) == (b"7", HELLO)
        assert router.poll(5000)
        assert decode_to_ledger(recv_now(router)[1]).seq == 1
        assert not is_readable(router)
        router.send_multipart([b"7", encode_message(LedgerAck(seq=1))])
        for _ in range(500):
            client.turn(0.1)
            if not client.num_kept:
                break
            router.poll(10)
        assert client.num_kept == 0
    finally:
        client.close()
        context.destroy(linger=0)
