import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nodeserve.supervisor.kernel import forgo_oom_protection, name_process, send_signal


def test_the_daemon_may_open_as_many_files_as_its_hard_limit():
    code = (
        "import resource as r; from nodeserve.supervisor.kernel import allow_many_files;"
        "r.setrlimit(r.RLIMIT_NOFILE, (200, 300)); allow_many_files();"
        "print(r.getrlimit(r.RLIMIT_NOFILE))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "(300, 300)\n"


@pytest.mark.parametrize(("before", "after"), [("-500", "0"), ("0", "0"), ("300", "300")])
def test_a_child_gives_up_the_supervisors_protection_and_nothing_else(tmp_path, before, after):
    """On a file like the kernel's: to be protected takes a privilege that tests may lack."""
    adjustment = tmp_path / "oom_score_adj"
    adjustment.write_text(before + "\n")
    forgo_oom_protection(adjustment)
    assert adjustment.read_text().strip() == after


def test_the_name_is_what_ps_shows():
    before = Path("/proc/self/comm").read_text().strip()
    name_process("ns:decode-0-with-a-long-name")
    assert Path("/proc/self/comm").read_text().strip() == "ns:decode-0-wit"
    name_process(before)


def test_signals_to_what_is_gone_are_no_error():
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    send_signal(pidfd, signal.SIGTERM)
    os.close(pidfd)
