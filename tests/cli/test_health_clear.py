import pytest

from nodeserve.wire.control import CommandReply
from nodeserve.wire.device_control import HealthClear


@pytest.mark.parametrize(("word", "meter"), [("GPU-a", "GPU-a"), ("all", None)])
def test_a_device_can_be_said_to_be_well(daemon, run, word, meter):
    daemon.answers = [CommandReply(detail="1 findings are cleared")]
    result = run("health", "clear", word, "--socket", daemon.socket)
    assert (result.exit_code, result.stdout) == (0, "1 findings are cleared\n")
    assert daemon.heard == [HealthClear(meter=meter)]
