"""Entry points for children that the tests start through a fork server."""

import os
import signal
import subprocess
import sys
import time

from nodeserve.errors import ConfigError


def say_where_i_am(spec, fds):
    cores = sorted(os.sched_getaffinity(0))
    text = f"{os.getppid()} {os.getsid(0) == os.getpid()} {os.environ.get('GREETING')} {cores}"
    os.write(fds[0], text.encode() + b" " + spec)
    sys.stdout.write("to the log\n")


def refuse(spec, fds):
    raise ConfigError("model /x: no such directory; name one that exists")


def crash(spec, fds):
    raise RuntimeError("boom")


def leave(spec, fds):
    sys.exit(int(spec))


def sleep(spec, fds):
    if fds:
        os.write(fds[0], b"up")
    time.sleep(60)


def die(spec, fds):
    os.kill(os.getpid(), signal.SIGKILL)


def start_helper_and_sleep(spec, fds):
    helper = subprocess.Popen(["sleep", "60"], pass_fds=fds)
    os.write(fds[0], str(helper.pid).encode())
    time.sleep(60)
