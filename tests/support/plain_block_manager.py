"""The plainest block manager that engines can use, in a thread of the test; it does as it is told.

It knows one tier and evicts nothing. A test may make it silent, deaf to stores, or a liar.
"""

import hashlib
import threading

import zmq

from nodeserve.bus.sockets import bind, open_socket
from nodeserve.transfer.shared_memory import SharedMemory
from nodeserve.transfer.slot_directory import (
    SlotDirectory,
    SlotShape,
    SlotState,
    directory_bytes,
)
from nodeserve.wire import kv_tier
from nodeserve.wire.kv_tier import (
    ABSENT,
    KvAbandon,
    KvFound,
    KvHello,
    KvLookup,
    KvPublish,
    KvRelease,
    KvReserve,
    KvReserved,
    KvWelcome,
    join_slots,
    split_keys,
    split_slots,
)

POLL_MS = 10


class PlainBlockManager:
    """Serves at ``address`` until closed.

    Attributes:
        silent: Whether it answers nothing but greetings.
        stores: Whether it gives slots.
        heard: The last message of each kind.
        index: Slots by key.
        writing: Keys by slot that an engine may write.
        pinned: Look-ups whose pins are not given back, by engine and call.
    """

    def __init__(self, address: str, total_bytes: int = 64 << 20) -> None:
        self.silent, self.stores = False, True
        self.heard: dict[type, object] = {}
        self.index: dict[bytes, int] = {}
        self.pinned: set[tuple[bytes, int]] = set()
        self.directory: SlotDirectory | None = None
        self.changed = threading.Condition()
        self._total_bytes = total_bytes
        self.arena = SharedMemory("arena", total_bytes)
        self._page = SharedMemory("directory", directory_bytes(total_bytes // 4096))
        self.writing: dict[int, bytes] = {}
        self._context = zmq.Context()
        self._socket = open_socket(self._context, zmq.ROUTER)
        bind(self._socket, address)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)
        self.arena.close()
        self._page.close()

    def wait_until(self, is_true, deadline_s: float = 10.0) -> None:
        """Return once what it knows makes ``is_true()`` so."""
        with self.changed:
            assert self.changed.wait_for(is_true, deadline_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(POLL_MS):
                continue
            identity, frame = self._socket.recv_multipart()
            with self.changed:
                message = kv_tier.decode_request(frame)
                answer = self._answer(identity, message)
                self.heard[type(message)] = message
                self.changed.notify_all()
            if answer is not None and not (self.silent and not isinstance(message, KvHello)):
                self._socket.send_multipart([identity, kv_tier.encode_message(answer)])

    def _answer(self, identity: bytes, message: kv_tier.Request) -> kv_tier.Answer | None:
        match message:
            case KvHello():
                return self._welcome(message)
            case KvLookup():
                slots = [self.index.get(key, ABSENT) for key in split_keys(message.keys)]
                if not self.silent and set(slots) != {ABSENT}:
                    self.pinned.add((identity, message.call_id))
                return KvFound(call_id=message.call_id, slots=join_slots(slots))
            case KvRelease():
                self.pinned -= {(identity, call_id) for call_id in message.call_ids}
            case KvReserve():
                slots = [self._reserve(key) for key in split_keys(message.keys)]
                return KvReserved(call_id=message.call_id, slots=join_slots(slots))
            case KvPublish():
                for slot in split_slots(message.slots):
                    key = self.writing.pop(slot)
                    self.index[key] = slot
                    self.directory.write(slot, SlotState.READY, key, tenant=0)
            case KvAbandon():
                for slot in split_slots(message.slots):
                    self.writing.pop(slot)
                    self.directory.write(slot, SlotState.FREE, bytes(32), tenant=0)
        return None

    def _reserve(self, key: bytes) -> int:
        slot = len(self.index) + len(self.writing)
        known = key in self.index or key in self.writing.values()
        if known or not self.stores or slot >= self.directory.shape.num_slots:
            return ABSENT
        self.writing[slot] = key
        self.directory.write(slot, SlotState.RESERVED, key, tenant=0)
        return slot

    def _welcome(self, hello: KvHello) -> KvWelcome:
        stride = -(-hello.block_bytes // 4096) * 4096
        namespace = hashlib.sha256(hello.kv_format).digest()
        if self.directory is None:
            shape = SlotShape(self._total_bytes // stride, stride, namespace)
            self.directory = SlotDirectory(self._page.fd, shape)
        return KvWelcome(
            generation=1,
            namespace=namespace,
            num_slots=self.directory.shape.num_slots,
            slots_per_arena=self.directory.shape.num_slots,
            slot_stride=stride,
            arenas=(self.arena.handle(),),
            directory=self._page.handle(),
        )
