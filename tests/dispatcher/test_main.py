"""Claims about the dispatcher's process."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from nodeserve.bus.channel import ControlServer
from nodeserve.bus.sockets import listen_at
from nodeserve.wire.control import (
    DispatcherHeartbeat,
    DispatcherReady,
    DrainNode,
    Message,
    NodeDrained,
)
from nodeserve.wire.spawn import DispatcherSpec
from tests.dispatcher.fakes import WITHIN_S

PROGRAM = """
import sys
from nodeserve.dispatcher.main import run
run(bytes.fromhex(sys.argv[1]), [])
heavy = {"torch", "vllm", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def spec(directory: Path) -> DispatcherSpec:
    return DispatcherSpec(
        generation=1,
        runtime_dir=str(directory),
        control_address=f"ipc://{directory}/c",
        input_address=f"ipc://{directory}/i",
        output_address=f"ipc://{directory}/o",
    )


def spawn(directory: Path) -> "subprocess.Popen[str]":
    encoded = msgspec.msgpack.encode(spec(directory)).hex()
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, encoded],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stderr=subprocess.PIPE,
        text=True,
    )


async def anything_but_a_heartbeat(server: ControlServer) -> tuple[bytes, Message]:
    while isinstance((heard := await server.recv())[1], DispatcherHeartbeat):
        pass
    return heard


async def test_process_serves_until_sigterm_and_imports_nothing_heavy(tmp_path: Path) -> None:
    server = ControlServer(listen_at(spec(tmp_path).control_address))
    process = spawn(tmp_path)
    async with asyncio.timeout(WITHIN_S):
        identity, message = await server.recv()
        assert (identity, message) == (b"1", DispatcherReady(generation=1, pid=process.pid))
        server.send(identity, DrainNode())
        assert await anything_but_a_heartbeat(server) == (b"1", NodeDrained())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, errors
    server.close()


async def test_address_in_use_ends_the_process_with_a_clear_error(tmp_path: Path) -> None:
    server = ControlServer(listen_at(spec(tmp_path).control_address))
    other = ControlServer(listen_at(spec(tmp_path).input_address))
    process = spawn(tmp_path)
    _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode != 0
    assert "is live: another process listens there" in errors
    other.close()
    server.close()
