"""GPUs that are lost: their workers are drained and fenced, and the node goes on with the rest."""

import pytest

from nodeserve.wire.device_control import HealthClear
from nodeserve.wire.kinds import Role
from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream, busy_workers
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

GREEDY = {"temperature": 0, "max_tokens": 150}


@pytest.fixture
def watched(tiny_model, tmp_path):
    """A slow node of two prefill and two decode workers whose devices a monitor watches."""
    config = tmp_path / "node.toml"
    config.write_text(f'[accounting]\nenabled = true\ndb = "{tmp_path}/ledger.db"\n')
    words = (str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "0.1")
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        node.wait_until(lambda status: len(status.devices) == 4)
        yield node
        assert node.stop() == 0


def lose(node, *numbers):
    script = node.socket.with_name(node.socket.name + ".d") / "devices.script"
    script.write_text("".join(f"0 {number} lost=1\n" for number in numbers))


def fenced(status):
    return [process.name for process in status.processes if process.state == "fenced"]


def test_streams_of_a_lost_gpu_go_on_elsewhere_and_it_stays_fenced_until_cleared(watched):
    node = watched
    calm = [Stream(node, node.model, prompt, **GREEDY) for prompt in PROMPTS]
    expected = [stream.end()[:2] for stream in calm]
    streams = [Stream(node, node.model, prompt, **GREEDY) for prompt in PROMPTS]
    for stream in streams:
        stream.wait_for(10)
    name = busy_workers(node.status())[0]
    number = [worker.name for worker in node.status().processes if worker.role].index(name)
    lose(node, number)
    status = node.wait_until(lambda status: fenced(status) == [name])
    assert status.state == "degraded"
    assert [stream.end()[:2] for stream in streams] == expected
    node.ask(HealthClear(meter=f"sim-{number}"))
    assert fenced(node.wait_until(fenced)) == [name]  # it is still lost
    lose(node)
    node.command(HealthClear(meter=f"sim-{number}"))
    node.wait_until(lambda status: status.state == "ready" and not status.findings)


def test_where_all_gpus_that_decode_are_lost_others_stand_in(watched):
    node = watched
    roles = [worker.role for worker in node.status().processes if worker.role]
    lose(node, *(number for number, role in enumerate(roles) if role is Role.DECODE))
    node.wait_until(lambda status: len(fenced(status)) == 2)
    assert node.complete("hello", max_tokens=5)["usage"]["completion_tokens"] == 5
    assert node.status().state == "degraded"
