import os
import subprocess
import sys

PARENT = """
import os, subprocess, sys
code = "import os, sys, time; from nodeserve.device.parent_death import die_with_parent;" \\
       "die_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_child_dies_with_its_parent():
    made = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, check=False)
    try:
        pidfd = os.pidfd_open(int(made.stdout))
    except ProcessLookupError:
        return
    poller = __import__("select").poll()
    poller.register(pidfd)
    assert poller.poll(10_000)
    os.close(pidfd)
