import pytest
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.monitor import ledger_line
from nodeserve.monitor.ledger_line import LedgerLine
from nodeserve.wire.accounting import (
    LedgerHello,
    Meter,
    MetersHello,
    MetersRead,
    Reading,
    decode_to_ledger,
    encode_message,
)

METER = Meter(meter="g", kind="gpu", name="H100", source="nvml-counter")
OTHER = Meter(meter="h", kind="gpu", name="H100", source="nvml-counter")


class FakeLedger:
    def __init__(self, address):
        self.context = zmq.Context()
        self.socket = open_socket(self.context, zmq.ROUTER)
        bind(self.socket, address)

    def next(self):
        assert self.socket.poll(10_000)
        identity, frame = self.socket.recv_multipart()
        assert identity == b"7"
        return decode_to_ledger(frame)

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def address(tmp_path):
    tmp_path.chmod(0o700)
    return f"ipc://{tmp_path}/ledger"


@pytest.fixture
def line(address):
    made = LedgerLine(address, 7)
    yield made
    made._socket.setsockopt(zmq.LINGER, 0)
    made.close()


@pytest.fixture
def ledger(address):
    made = FakeLedger(address)
    yield made
    made.close()


def read(line, counter_mj=1):
    line.read((Reading(meter="g", counter_mj=counter_mj),), at_s=2.0, at_unix_s=3.0)


def test_meters_are_introduced_once_and_when_they_change(line, ledger):
    line.introduce((METER,))
    line.introduce((METER,))
    read(line)
    line.introduce((METER, OTHER))
    assert [ledger.next() for _ in range(3)] == [
        MetersHello(generation=7, meters=(METER,)),
        MetersRead(
            generation=7, at_s=2.0, at_unix_s=3.0, readings=(Reading(meter="g", counter_mj=1),)
        ),
        MetersHello(generation=7, meters=(METER, OTHER)),
    ]


def test_a_ledger_that_asks_is_told_again(line, ledger):
    line.introduce((METER,))
    ledger.next()
    ledger.socket.send_multipart([b"7", b"garbage"])
    ledger.socket.send_multipart([b"7", encode_message(LedgerHello(generation=9))])
    assert line._socket.poll(10_000)
    while ledger.socket.poll(0) == 0:
        line.listen()
    assert ledger.next() == MetersHello(generation=7, meters=(METER,))


def test_what_was_read_before_the_ledger_came_waits_for_it(line, address):
    line.introduce((METER,))
    read(line)
    ledger = FakeLedger(address)
    assert isinstance(ledger.next(), MetersHello)
    assert isinstance(ledger.next(), MetersRead)
    ledger.close()


def test_a_ledger_that_does_not_come_costs_readings_and_no_time(address, monkeypatch):
    monkeypatch.setattr(ledger_line, "HIGH_WATER", 3)
    line = LedgerLine(address, 7)
    for _ in range(5):
        read(line)
    assert line.num_dropped == 2
    line._socket.setsockopt(zmq.LINGER, 0)
    line.close()
