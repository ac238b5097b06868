"""A ledger in a process of its own, its supervisor, and those who tell it things."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.ledger.database import open_to_read
from nodeserve.ledger.reading import Ledger
from nodeserve.ledger.verify import verify
from nodeserve.wire import accounting, control
from nodeserve.wire.accounting import LedgerAck, LedgerHello
from nodeserve.wire.ledger_control import LedgerReady
from nodeserve.wire.spawn import LedgerSpec

WITHIN_S = 20

PROGRAM = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
from nodeserve.ledger.main import run
run(bytes.fromhex(sys.argv[1]), [])
heavy = {"torch", "vllm", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


class Node:
    """The supervisor's side: the control socket and one ledger at a time."""

    def __init__(self, directory: Path, *, file_bytes=resource.RLIM_INFINITY, **spec) -> None:
        """``file_bytes`` is how large a file of the ledger's process may become."""
        self._file_bytes = file_bytes
        self.directory = directory
        self.path = directory / "ledger.db"
        self.context = zmq.Context()
        self._control = open_socket(self.context, zmq.ROUTER)
        fields = {
            "generation": 100,
            "runtime_dir": str(directory),
            "control_address": f"ipc://{directory}/c",
            "ledger_address": f"ipc://{directory}/l",
            "db_path": str(self.path),
            "run_id": "run-1",
            "node": "here",
            "zone": "DE",
        }
        self.spec = LedgerSpec(**(fields | spec))
        bind(self._control, self.spec.control_address)
        self.process: Any = None
        self._speakers = []

    def spawn(self):
        self.spec = msgspec.structs.replace(self.spec, generation=self.spec.generation + 1)
        encoded = msgspec.msgpack.encode(self.spec).hex()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, encoded, str(self._file_bytes)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def start(self):
        self.spawn()
        self.hear(LedgerReady)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WITHIN_S)

    def stop(self) -> str:
        self.process.terminate()
        _, errors = self.process.communicate(timeout=WITHIN_S)
        assert self.process.returncode == 0, errors
        return errors

    def give_room(self) -> None:
        """Let the ledger's files become as large as they like."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, unlimited)

    def ask(self, question, kind):
        self.say(question)
        return self.hear(kind)

    def say(self, message) -> None:
        self._control.send_multipart([str(self.spec.generation).encode(), control.encode(message)])

    def hear(self, kind, holds=lambda _: True):
        until_s = time.monotonic() + WITHIN_S
        while time.monotonic() < until_s and self.process.poll() is None:
            if not self._control.poll(100):
                continue
            identity, frame = self._control.recv_multipart()
            message = control.decode(frame)
            ours = identity == str(self.spec.generation).encode()
            if ours and isinstance(message, kind) and holds(message):
                return message
        errors = self.process.communicate(timeout=1)[1] if self.process.poll() is not None else ""
        raise AssertionError(f"no {kind} within {WITHIN_S} s; {errors}")

    def speaker(self, generation):
        speaker = Speaker(self, generation)
        self._speakers.append(speaker)
        return speaker

    def verdict(self):
        connection = open_to_read(self.path)
        try:
            return verify(connection)
        finally:
            connection.close()

    def read(self, function):
        connection = open_to_read(self.path)
        try:
            return function(Ledger(connection))
        finally:
            connection.close()

    def read_when(self, function, holds):
        """Read until ``holds`` of what is read, which the ledger is about to book."""
        until_s = time.monotonic() + WITHIN_S
        while True:
            if self.path.exists():
                found = self.read(function)
                if holds(found):
                    return found
            assert time.monotonic() < until_s, "the ledger has not booked it"
            self._control.poll(50)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.context.destroy(linger=0)


class Speaker:
    """Somebody who tells the ledger things, keeps what is numbered, and says it again if asked."""

    def __init__(self, node, generation) -> None:
        self.generation = generation
        self.hello = None
        self.seq = 0
        self.kept = {}
        self.heard = []
        self._socket = open_socket(
            node.context, zmq.DEALER, identity=str(generation).encode(), high_water_messages=100_000
        )
        self._socket.connect(node.spec.ledger_address)

    def greet(self, hello) -> None:
        self.hello = hello
        self.say(hello)

    def say(self, message) -> None:
        self._socket.send(accounting.encode_message(message))

    def number(self, message_of) -> None:
        """Say what ``message_of`` makes of the next number."""
        self.seq += 1
        self.kept[self.seq] = message_of(self.seq)
        self.say(self.kept[self.seq])

    def probe(self) -> None:
        """Say the oldest that is kept again, as those do of whom the ledger has said nothing."""
        if self.kept:
            self.say(self.kept[min(self.kept)])

    def listen(self, within_s=0.0):
        """Obey what has come."""
        wait_ms = int(within_s * 1000)
        while self._socket.poll(wait_ms):
            wait_ms = 0
            message = accounting.decode_from_ledger(self._socket.recv())
            self.heard.append(message)
            if isinstance(message, LedgerAck):
                kept = self.kept.items()
                self.kept = {number: said for number, said in kept if number > message.seq}
            elif isinstance(message, LedgerHello):
                if self.hello is not None:
                    self.say(self.hello)
                for number in sorted(self.kept):
                    self.say(self.kept[number])
        return self.heard

    def hear(self, kind, within_s=WITHIN_S):
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            self.listen(0.1)
            for message in self.heard:
                if isinstance(message, kind):
                    self.heard.remove(message)
                    return message
        raise AssertionError(f"no {kind} within {within_s} s")

    def settle(self):
        """Wait until all that was numbered is acknowledged."""
        until_s = time.monotonic() + WITHIN_S
        while self.kept:
            assert time.monotonic() < until_s, f"{len(self.kept)} messages are not acknowledged"
            self.listen(0.1)
