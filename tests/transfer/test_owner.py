"""Whether another process still runs."""

import os
import subprocess

import pytest

from nodeserve.errors import PeerError
from nodeserve.transfer.owner import Owner, started_ticks


@pytest.fixture
def process():
    made = subprocess.Popen(["sleep", "60"])
    yield made
    made.kill()
    made.wait()


def test_a_process_is_alive_until_it_has_ended_even_as_a_zombie(process):
    owner = Owner(process.pid, started_ticks(process.pid))
    assert owner.is_alive()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not owner.is_alive()
    owner.close()


def test_another_process_of_the_same_id_is_not_it(process):
    with pytest.raises(PeerError, match="is another one by now"):
        Owner(process.pid, started_ticks(process.pid) - 1)


def test_a_process_that_is_gone_is_refused():
    with pytest.raises(PeerError, match="has ended"):
        Owner(2**22 + 1, 1)


def test_a_closed_watch_says_dead(process):
    owner = Owner(process.pid, started_ticks(process.pid))
    owner.close()
    owner.close()
    assert not owner.is_alive()
