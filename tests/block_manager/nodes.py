"""A block manager in a process of its own, its supervisor and engines that speak its wire."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.transfer.arenas import create_arenas
from nodeserve.transfer.slot_directory import SlotDirectoryReader, SlotShape
from nodeserve.wire import control, kv_tier
from nodeserve.wire.kv_control import (
    BlockManagerHeartbeat,
    BlockManagerReady,
    KvEngineGone,
    KvTierStatusRequest,
)
from nodeserve.wire.kv_tier import KvHello, KvLookup, KvPublish, KvRelease, KvReserve
from nodeserve.wire.spawn import BlockManagerSpec
from tests.kv.tiers import keys

WITHIN_S = 20
ARENA_BYTES = 1 << 20
BLOCK_BYTES = 10_000
STRIDE = 12_288

PROGRAM = """
import sys
from nodeserve.block_manager.main import run, serve
from tests.block_manager.fake_store import open_fake_store
fds = [int(fd) for fd in sys.argv[2:]]
spec = bytes.fromhex(sys.argv[1])
run(spec, fds) if b"real-disk" in spec else serve(spec, fds, open_fake_store)
heavy = {"torch", "vllm", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def write_model(path: Path, weights=b"w") -> Path:
    path.mkdir()
    (path / "model.safetensors").write_bytes(weights * 5000)
    return path


class Node:
    """The supervisor's side: the memory, the control socket and one block manager at a time."""

    def __init__(self, directory: Path, *, num_arenas=2, **spec) -> None:
        self.directory = directory
        self.arenas = create_arenas(num_arenas * ARENA_BYTES, ARENA_BYTES)
        self.context = zmq.Context()
        self._control = open_socket(self.context, zmq.ROUTER)
        self.spec = BlockManagerSpec(
            generation=100,
            runtime_dir=str(directory),
            control_address=f"ipc://{directory}/c",
            tier_address=f"ipc://{directory}/t",
            arena_bytes=ARENA_BYTES,
            state_dir=str(directory),
            **spec,
        )
        bind(self._control, self.spec.control_address)
        self.engines = []
        self.model = write_model(directory / "model")

    def spawn(self) -> "subprocess.Popen[str]":
        self.spec = msgspec.structs.replace(self.spec, generation=self.spec.generation + 1)
        encoded = msgspec.msgpack.encode(self.spec).hex()
        fds = self.arenas.fds
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, encoded, *map(str, fds)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stderr=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        return self.process

    def start(self):
        self.spawn()
        ready = self.hear(BlockManagerReady)
        assert (ready.generation, ready.pid) == (self.spec.generation, self.process.pid)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=WITHIN_S)

    def stop(self) -> str:
        self.process.terminate()
        _, errors = self.process.communicate(timeout=WITHIN_S)
        assert self.process.returncode == 0, errors
        return errors

    def say(self, message) -> None:
        self._control.send_multipart([str(self.spec.generation).encode(), control.encode(message)])

    def hear(self, kind):
        until_s = time.monotonic() + WITHIN_S
        while time.monotonic() < until_s and self.process.poll() is None:
            if not self._control.poll(100):
                continue
            identity, frame = self._control.recv_multipart()
            message = control.decode(frame)
            if identity == str(self.spec.generation).encode() and isinstance(message, kind):
                return message
        errors = self.process.communicate(timeout=1)[1] if self.process.poll() is not None else ""
        raise AssertionError(f"no {kind} within {WITHIN_S} s; {errors}")

    def ask(self, question, kind):
        self.say(question)
        return self.hear(kind)

    def status(self):
        return self.ask(KvTierStatusRequest(), control.KvTierStatus)

    def status_when(self, holds):
        """Ask until ``holds`` of the status, which something under way is to bring about."""
        until_s = time.monotonic() + WITHIN_S
        while not holds(status := self.status()):
            assert time.monotonic() < until_s, status
            self.hear(BlockManagerHeartbeat)
        return status

    def gone(self, generation) -> None:
        self.say(KvEngineGone(generation=generation))

    def engine(self, generation, **hello):
        engine = Engine(self, generation, **hello)
        self.engines.append(engine)
        return engine

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=WITHIN_S)
        for engine in self.engines:
            engine.close()
        self._control.close(linger=0)
        self.context.destroy(linger=0)
        for fd in self.arenas.fds:
            os.close(fd)


class Engine:
    """One engine's scheduler and, by address, its workers."""

    def __init__(self, node, generation, **hello) -> None:
        self.node = node
        self.generation = generation
        self._socket = open_socket(
            node.context, zmq.DEALER, identity=str(generation).encode(), high_water_messages=100_000
        )
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.connect(node.spec.tier_address)
        self._hello = {
            "worker": f"w{generation}",
            "generation": generation,
            "pid": os.getpid(),
            "model": str(node.model),
            "kv_format": b"bf16",
            "block_bytes": BLOCK_BYTES,
            **hello,
        }
        self._call_id = 0
        self.welcome = None

    def say(self, message) -> None:
        self._socket.send(kv_tier.encode_message(message))

    def send_raw(self, *frames) -> None:
        self._socket.send_multipart(frames)

    def hear(self, *kinds):
        until_s = time.monotonic() + WITHIN_S
        while self._socket.poll(max(0, until_s - time.monotonic()) * 1000):
            message = kv_tier.decode_answer(self._socket.recv())
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"engine {self.generation} heard no {kinds} within {WITHIN_S} s")

    def hello(self, **more):
        self.say(KvHello(**{**self._hello, **more}))
        answer = self.hear(kv_tier.KvWelcome, kv_tier.KvRefused)
        self.welcome = answer if isinstance(answer, kv_tier.KvWelcome) else None
        return answer

    def join(self, **more):
        answer = self.hello(**more)
        assert self.welcome is not None, answer
        return self

    def next_call(self) -> int:
        self._call_id += 1
        return self._call_id

    def reserve(self, *names, listener="l", parent=b""):
        ask = KvReserve(
            call_id=self.next_call(), listener=listener, keys=keys(*names), parent=parent
        )
        self.say(ask)
        answer = self.hear(kv_tier.KvReserved)
        assert answer.call_id == ask.call_id
        return kv_tier.split_slots(answer.slots)

    def publish(self, slots) -> None:
        self.say(KvPublish(slots=kv_tier.join_slots(slots)))

    def look_up(self, *names, listener="l", deadline_s=0.0):
        ask = KvLookup(
            call_id=self.next_call(), listener=listener, keys=keys(*names), deadline_s=deadline_s
        )
        self.say(ask)
        answer = self.hear(kv_tier.KvFound)
        assert answer.call_id == ask.call_id
        if answer.num_pending:
            answer = self.hear(kv_tier.KvFound)
            assert (answer.call_id, answer.num_pending) == (ask.call_id, 0)
        return kv_tier.split_slots(answer.slots)

    def release(self, *call_ids) -> None:
        self.say(KvRelease(call_ids=call_ids or (self._call_id,)))

    def store(self, *names, fill=None, listener="l"):
        slots = self.reserve(*names, listener=listener)
        for slot, name in zip(slots, names, strict=True):
            self.write(slot, fill or f"{name}-".encode())
        self.publish(slots)
        return slots

    def directory(self):
        shape = SlotShape(self.welcome.num_slots, self.welcome.slot_stride, self.welcome.namespace)
        return SlotDirectoryReader(self.welcome.directory, shape)

    @contextlib.contextmanager
    def _arena(self, slot):
        arena, place = divmod(slot, self.welcome.slots_per_arena)
        handle = self.welcome.arenas[arena]
        fd = os.open(f"/proc/{handle['pid']}/fd/{handle['fd']}", os.O_RDWR)
        try:
            yield fd, place * self.welcome.slot_stride
        finally:
            os.close(fd)

    def write(self, slot, fill: bytes) -> None:
        with self._arena(slot) as (fd, offset):
            os.pwrite(fd, block_of(fill), offset)

    def read(self, slot) -> bytes:
        with self._arena(slot) as (fd, offset):
            return os.pread(fd, BLOCK_BYTES, offset)

    def close(self) -> None:
        self._socket.close(linger=0)


def block_of(fill: bytes) -> bytes:
    return (fill * (BLOCK_BYTES // len(fill) + 1))[:BLOCK_BYTES]
