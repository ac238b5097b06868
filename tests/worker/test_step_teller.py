import msgspec
import pytest
import zmq

from nodeserve.bus.ledger_client import LedgerClient
from nodeserve.bus.sockets import bind, open_socket
from nodeserve.clock import ManualClock
from nodeserve.engine.step_log import StepRecorder
from nodeserve.perf_model.work_shape import TYPICAL
from nodeserve.wire.accounting import EngineHello, Member, StepLog, decode_to_ledger
from nodeserve.wire.kinds import Role
from nodeserve.worker.control import Reporter
from nodeserve.worker.step_teller import StepTeller, telling


class Port:
    def __init__(self):
        self.sent = []

    def send(self, frame):
        self.sent.append(decode_to_ledger(frame))
        return True

    def recv(self):
        return None

    def close(self):
        pass


@pytest.fixture
def clock():
    return ManualClock(10.0)


@pytest.fixture
def recorder():
    return StepRecorder(TYPICAL, now_s=10.0)


@pytest.fixture
def port():
    return Port()


@pytest.fixture
def reporter(channel, spec):
    return Reporter(channel, spec)


@pytest.fixture
def teller(port, recorder, reporter, clock):
    return StepTeller(LedgerClient(port), recorder, reporter, generation=4, clock=clock)


def test_what_was_computed_is_said_under_the_present_role(teller, port, recorder, reporter, clock):
    recorder.began(10.1)
    recorder.ended(10.2, joined=[Member("d1-1.1", 1, 5)])
    clock.advance(0.25)
    teller.tell()
    (log,) = port.sent
    assert (log.generation, log.seq, log.role) == (4, 1, Role.DECODE)
    assert (log.begin_s, log.end_s, log.runs[0].joined) == (10, 10.25, (Member("d1-1.1", 1, 5),))
    reporter.role = Role.PREFILL
    clock.advance(0.25)
    teller.tell()
    assert (port.sent[1].seq, port.sent[1].role, port.sent[1].runs) == (2, Role.PREFILL, ())


def test_a_long_step_is_said_when_it_is_over(teller, port, recorder, clock):
    teller.tell()
    recorder.began(10.0)
    clock.advance(1.0)
    teller.tell()
    assert port.sent == []
    recorder.ended(11.0)
    teller.tell()
    assert port.sent[0].runs[0].busy_s == 1.0


def test_an_engine_without_a_recorder_tells_nothing(spec, engine, reporter, clock):
    with telling(spec, engine, reporter, clock) as teller:
        assert teller is None


def test_the_rest_is_said_when_the_engine_ends(tmp_path, spec, engine, reporter, recorder, clock):
    tmp_path.chmod(0o700)
    address = f"ipc://{tmp_path}/ledger.sock"
    context = zmq.Context()
    router = open_socket(context, zmq.ROUTER)
    bind(router, address)
    engine.recorder = recorder
    spec = msgspec.structs.replace(spec, ledger_address=address, meters=("gpu-3",))
    try:
        with telling(spec, engine, reporter, clock):
            recorder.began(10.0)
            recorder.ended(10.5, once=[Member("d1-1.1", 7, 0)])
        said = []
        while len(said) < 2:
            assert router.poll(5000)
            said.append(decode_to_ledger(router.recv_multipart()[1]))
    finally:
        context.destroy(linger=0)
    assert said[0] == EngineHello(
        worker="decode-1", generation=4, role=Role.DECODE, meters=("gpu-3",), work=TYPICAL
    )
    assert isinstance(said[1], StepLog)
    assert said[1].runs[0].once == (Member("d1-1.1", 7, 0),)
