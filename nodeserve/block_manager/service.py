"""The block manager as a whole: engines' requests, the supervisor's messages, and its clock."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from nodeserve.block_manager.admission import Admission
from nodeserve.block_manager.disk import DiskTier, OpenStore
from nodeserve.block_manager.kept_pins import KeptPins
from nodeserve.block_manager.log_file import LogFile
from nodeserve.block_manager.memory import TierMemory, directory_shape
from nodeserve.block_manager.operator import OperatorDesk
from nodeserve.block_manager.sockets import EnginesSocket
from nodeserve.block_manager.tier_desk import TierDesk
from nodeserve.bus.channel import ControlChannel
from nodeserve.clock import Clock
from nodeserve.errors import InvalidTransitionError, NodeserveError, PeerError
from nodeserve.kv.host_tier import HostTier, TierConfig
from nodeserve.kv.tier_events import (
    BlocksLookedUp,
    CallsReleased,
    ReservationAsked,
    SlotsAbandoned,
    SlotsPublished,
    TimeElapsed,
)
from nodeserve.kv.tier_log import LogHeader, Op
from nodeserve.transfer.disk_store import DirectoryLost, DiskStore
from nodeserve.transfer.first_touch import in_background
from nodeserve.transfer.slot_directory import SlotDirectory, found_shape
from nodeserve.wire import control, kv_tier
from nodeserve.wire.kv_control import (
    BlockManagerHeartbeat,
    BlockManagerReady,
    KvClear,
    KvEngineGone,
    KvPin,
    KvTierStatusRequest,
    KvUnpin,
)
from nodeserve.wire.kv_tier import KEY_BYTES, split_slots
from nodeserve.wire.spawn import BlockManagerSpec

_LOG: Final = logging.getLogger(__name__)

TICK_S: Final = 0.1
HEARTBEAT_TICKS: Final = 5
MAX_KEYS: Final = 65_536
"""Keys in one message: with blocks of 16 tokens a prompt of a million."""

MAX_LISTENER_CHARS: Final = 256
MAX_WAIT_S: Final = 60.0
"""How long a look-up may wait for disk, whatever deadline it names."""

DISK_CLOSE_S: Final = 2.0


class BlockManager:
    """One node's host tier: ``run`` until cancelled. Make it in a running loop."""

    def __init__(
        self,
        spec: BlockManagerSpec,
        fds: list[int],
        clock: Clock,
        *,
        open_store: OpenStore,
        config: Callable[[int], TierConfig],
    ) -> None:
        """Use the memory in ``fds`` and listen; ``config`` is asked with the number of slots.

        Raises:
            ConfigError: The memory is not what the spec says, or an address cannot be used.
            PeerError: An address is in use.
        """
        self._spec = spec
        self._clock = clock
        self._config = config
        self._open_store = open_store
        self._memory = TierMemory(fds, spec.arena_bytes)
        self._end_touch = in_background("host-tier", self._memory.touch)
        self._writer = ThreadPoolExecutor(1, "kv-log")
        self._disk_pool = ThreadPoolExecutor(1, "disk-tier")
        path = spec.log_path
        self._log = None if path is None else LogFile(Path(path), clock, self._writer)
        self._num_rejected = 0
        self._num_stale = 0
        self.desk: TierDesk | None = None
        self.disk_failure: str | None = None
        self.admission = Admission(
            self,
            clock,
            state_dir=Path(spec.state_dir),
            runtime_dir=Path(spec.runtime_dir),
            grace_s=config(1).adopt_grace_s,
        )
        self._pins = KeptPins(Path(spec.runtime_dir) / "kv-pins")
        self._engines = EnginesSocket(spec.tier_address, self._take)
        self._control = ControlChannel(spec.control_address, str(spec.generation).encode())
        self._operator = OperatorDesk(self, self._say)

    @property
    def num_rejected(self) -> int:
        """Frames and messages dropped because they were not what they should be."""
        return self._num_rejected + self._engines.num_rejected + self._control.num_bad_frames

    @property
    def num_stale(self) -> int:
        """Messages of engines that spoke of what is no more, or not known here."""
        return self._num_stale

    @property
    def num_logged(self) -> tuple[int, int]:
        """Lines of the log that were written, and those that were dropped."""
        return (0, 0) if self._log is None else (self._log.num_written, self._log.num_dropped)

    async def run(self, pid: int) -> None:
        """Serve until cancelled. ``pid`` is what the supervisor is told."""
        ready = BlockManagerReady(generation=self._spec.generation, pid=pid)
        self._say(ready)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_control_messages(ready))
            tasks.create_task(self._tick_forever())
            tasks.create_task(self._operator.run())

    def close(self) -> None:
        """Close sockets, disk and log. The memory stays as it is, for a successor."""
        self._end_touch()
        self.admission.close()
        self._engines.close()
        self._control.close()
        if self.desk is not None:
            if self.desk.disk is not None:
                self.desk.disk.close(DISK_CLOSE_S)
            self.desk.close()
        if self._log is not None:
            self._log.close(DISK_CLOSE_S)
        for pool in (self._disk_pool, self._writer):
            pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------------- engines

    def _take(self, generation: int, request: kv_tier.Request) -> None:
        if isinstance(request, kv_tier.KvHello):
            self.admission.hello(generation, request)
            return
        desk = self.desk
        if desk is None or generation not in desk.tier.engines:
            if not self.admission.keep(generation, request):
                self._num_stale += 1
                self._send_if_there(generation, kv_tier.KvWho())
            return
        self.serve(generation, request)

    def serve(self, generation: int, request: kv_tier.Request) -> None:
        """Do what an engine that was let in has said."""
        desk = self.desk
        if desk is None:
            return
        try:
            self._serve(desk, generation, request)
        except ValueError:
            self._num_rejected += 1
        except InvalidTransitionError as error:
            self._num_rejected += 1
            _LOG.warning("engine_message_refused generation=%d cause=%s", generation, error)

    def _serve(self, desk: TierDesk, generation: int, request: kv_tier.Request) -> None:
        match request:
            case kv_tier.KvLookup(call_id=call_id, keys=keys):
                listener = _checked(request)
                desk.log(Op.LOOK_UP, listener, keys)
                deadline_s = min(request.deadline_s, self._clock.now_s() + MAX_WAIT_S)
                desk.tell(BlocksLookedUp(generation, call_id, listener, keys, deadline_s))
            case kv_tier.KvRelease(call_ids=call_ids):
                desk.tell(CallsReleased(generation, call_ids))
                desk.tier.counters.add_read(request.read_bytes, request.read_us)
            case kv_tier.KvReserve(call_id=call_id, keys=keys, parent=parent):
                listener = _checked(request)
                desk.log(Op.STORE, listener, keys, parent)
                desk.tell(ReservationAsked(generation, call_id, listener, keys, parent))
            case kv_tier.KvPublish(slots=slots):
                desk.tell(SlotsPublished(generation, split_slots(slots)))
                desk.tier.counters.add_written(request.written_bytes, request.written_us)
            case kv_tier.KvAbandon(slots=slots):
                desk.tell(SlotsAbandoned(generation, split_slots(slots)))
            case kv_tier.KvHello():
                self.admission.hello(generation, request)

    def welcome(self, generation: int) -> None:
        """Tell an engine how it may use the tier."""
        desk = self.desk
        if desk is not None:
            arenas, directory = self._memory.handles()
            answer = kv_tier.KvWelcome(
                generation=self._spec.generation,
                namespace=desk.namespace,
                num_slots=desk.shape.num_slots,
                slots_per_arena=desk.shape.slots_per_arena,
                slot_stride=desk.shape.slot_stride,
                arenas=arenas,
                directory=directory,
            )
            self._send_if_there(generation, answer)

    def refuse(self, generation: int, reason: str) -> None:
        """Tell an engine that it gets no tier."""
        self._send_if_there(generation, kv_tier.KvRefused(reason=reason))

    def _send_if_there(self, generation: int, answer: kv_tier.Answer) -> None:
        with contextlib.suppress(PeerError):  # it asks again when it is back
            self._engines.send(generation, answer)

    # ---------------------------------------------------------------------------- tier

    async def open_tier(
        self,
        hello: kv_tier.KvHello,
        namespace: bytes,
        known: Callable[[], frozenset[int] | None],
    ) -> None:
        """Begin a tier for blocks like this engine's, with what a predecessor left of the same.

        ``known`` is asked in the end for the engines that it knew.

        Raises:
            CapacityError: There is no room for one block.
        """
        shape = self._memory.shape(hello.block_bytes)
        directory = SlotDirectory(self._memory.directory_fd, directory_shape(shape, namespace))
        tier = HostTier(self._config(shape.num_slots))
        log = self._log
        if log is not None:
            log.begin(LogHeader(shape.num_slots, shape.block_bytes))
        send = self._engines.send
        desk = TierDesk(tier, directory, shape, self._clock, send=send, log=log)
        pinned = self._pins.read(namespace) if directory.adopted else ()
        try:
            if directory.adopted:
                await desk.adopt()
                desk.take_over(known(), pinned)
        except BaseException:
            desk.close()
            raise
        text = "host_tier_open slots=%d block_bytes=%d adopted=%d"
        _LOG.info(text, shape.num_slots, shape.block_bytes, len(tier.table.ready))
        self.desk = desk
        if pinned or not directory.adopted:
            self.keep_pins()
        self._open_disk(desk)

    def keep_pins(self) -> None:
        """Remember for a successor what is pinned now."""
        if self.desk is not None:
            self._pins.write(self.desk.namespace, self.desk.tier.pinned.keys)

    def has_foreign_slots(self, hello: kv_tier.KvHello, namespace: bytes) -> bool:
        """Return whether a predecessor's tier lies in the memory, of another shape or name."""
        found = found_shape(self._memory.directory_fd)
        if found is None:
            return False
        with contextlib.suppress(NodeserveError):
            return found != directory_shape(self._memory.shape(hello.block_bytes), namespace)
        return True

    def close_tier(self) -> None:
        """End the tier that nobody uses."""
        desk, self.desk = self.desk, None
        if desk is not None:
            if desk.disk is not None:
                self._disk_pool.submit(desk.disk.close, DISK_CLOSE_S)
            desk.close()

    def _open_disk(self, desk: TierDesk) -> None:
        spec, loop = self._spec.disk, asyncio.get_running_loop()
        if spec is None:
            return

        def lost(what: DirectoryLost) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._directory_lost, desk, what)

        opening = loop.run_in_executor(
            self._disk_pool, self._open_store, spec, desk.namespace, lost
        )
        opening.add_done_callback(lambda done: self._disk_opened(desk, done))

    def _disk_opened(self, desk: TierDesk, opening: "asyncio.Future[DiskStore]") -> None:
        if opening.cancelled():
            return
        error = opening.exception()
        if error is not None:
            if not isinstance(error, NodeserveError):
                raise error
            self._disk_failed(str(error))
            return
        memory, shape = self._memory, desk.shape
        disk = DiskTier(
            opening.result(), lambda slot: memory.address(slot, shape), shape.block_bytes
        )
        if self.desk is not desk:
            self._disk_pool.submit(disk.close, DISK_CLOSE_S)
            return
        desk.disk = disk
        desk.tier.disk_works = disk.works
        if disk.works:
            self.disk_failure = None

    def _directory_lost(self, desk: TierDesk, lost: DirectoryLost) -> None:
        text = f"{lost.directory}: {lost.reason}"
        if not lost.num_left:
            desk.tier.disk_works = False
            self._disk_failed(text)

    def _disk_failed(self, reason: str) -> None:
        self.disk_failure = reason
        _LOG.error("disk_tier_off reason=%r", reason)

    # ------------------------------------------------------------------------- control

    async def _take_control_messages(self, ready: BlockManagerReady) -> None:
        while True:
            message = await self._control.recv()
            match message:
                case KvEngineGone():
                    self.admission.gone(message.generation)
                case control.SayAgain():
                    self._say(ready)
                case KvTierStatusRequest() | KvClear() | KvPin() | KvUnpin():
                    self._operator.take(message)
                case _:
                    self._num_rejected += 1

    def _say(self, message: control.Message) -> None:
        with contextlib.suppress(PeerError):  # the supervisor is stuck: who would care
            self._control.send(message)

    async def _tick_forever(self) -> None:
        next_s = HEARTBEAT_TICKS * TICK_S
        heartbeat = BlockManagerHeartbeat(generation=self._spec.generation, next_s=next_s)
        for number in itertools.count():
            if number % HEARTBEAT_TICKS == 0:
                self._say(heartbeat)
            await asyncio.sleep(TICK_S)
            if self.desk is not None:
                self.desk.tell(TimeElapsed())
            self.admission.look_again()
            if self._log is not None:
                self._log.flush()


def tier_config(spec: BlockManagerSpec) -> Callable[[int], TierConfig]:
    """Return how a tier of so many slots is run."""
    return lambda num_slots: TierConfig(num_slots=num_slots, quotas=spec.quotas)


def decode_spec(spec_bytes: bytes) -> BlockManagerSpec:
    """Return the spec that came through the fork."""
    return msgspec.msgpack.decode(spec_bytes, type=BlockManagerSpec)


def _checked(request: kv_tier.KvLookup | kv_tier.KvReserve) -> str:
    """Return the listener's name, cut to a size; raises ValueError for keys that are none."""
    keys = request.keys
    if len(keys) % KEY_BYTES or len(keys) > MAX_KEYS * KEY_BYTES:
        text = f"{len(keys)} bytes of keys are not up to {MAX_KEYS} keys of {KEY_BYTES} bytes"
        raise ValueError(text)
    return request.listener[:MAX_LISTENER_CHARS]
