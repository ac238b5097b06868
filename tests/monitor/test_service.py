"""What the whole monitor does is shown by ``test_main``; here is what a process cannot be asked."""

import threading

import pytest
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.clock import MonotonicClock
from nodeserve.monitor.desk import Desk
from nodeserve.monitor.service import Monitor
from nodeserve.monitor.sources import Sources
from nodeserve.wire import control
from nodeserve.wire.device_control import DeviceReported, MonitorReady
from nodeserve.wire.spawn import MonitorSpec
from tests.support.monitor_entry import PlainJudge


@pytest.fixture
def monitor(tmp_path):
    tmp_path.chmod(0o700)
    clock = MonotonicClock()
    spec = MonitorSpec(
        generation=3,
        runtime_dir=str(tmp_path),
        control_address=f"ipc://{tmp_path}/control",
        run_began_s=clock.now_s(),
        simulate="2xh100-sxm",
        powercap_root=None,
    )
    made = Monitor(spec, Desk(Sources(spec, clock), PlainJudge(), clock), None, clock)
    yield made
    made.close()


def test_it_can_be_stopped_before_it_runs(monitor):
    monitor.stop()
    monitor.run()


def test_it_speaks_as_its_generation_and_stops_when_told(monitor, tmp_path):
    context = zmq.Context()
    supervisor = open_socket(context, zmq.ROUTER)
    bind(supervisor, f"ipc://{tmp_path}/control")
    running = threading.Thread(target=monitor.run)
    running.start()
    try:
        kinds = set()
        while kinds < {MonitorReady, DeviceReported}:
            assert supervisor.poll(10_000)
            identity, frame = supervisor.recv_multipart()
            assert identity == b"3"
            kinds.add(type(control.decode(frame)))
    finally:
        monitor.stop()
        running.join(10)
        context.destroy(linger=0)
    assert not running.is_alive()
