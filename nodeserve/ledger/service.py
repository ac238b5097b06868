"""The ledger as a whole: what it hears, what it books, whom it answers."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from nodeserve.bus.channel import ControlChannel
from nodeserve.bus.generations import GenerationsSocket
from nodeserve.clock import Clock
from nodeserve.energy.window import Accountant, Round
from nodeserve.errors import CapacityError, PeerError
from nodeserve.ledger.book_requests import leg_of
from nodeserve.ledger.inbox import NotesInbox
from nodeserve.ledger.retention import Retention
from nodeserve.ledger.store import Booking, Store
from nodeserve.ledger.uses import Uses
from nodeserve.wire import accounting, control
from nodeserve.wire.accounting import (
    EngineHello,
    LedgerAck,
    LedgerHello,
    MetersHello,
    MetersRead,
    RequestsNoted,
    StepLog,
)
from nodeserve.wire.ledger_control import LedgerEngineGone, LedgerHeartbeat, LedgerReady
from nodeserve.wire.spawn import LedgerSpec

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

MAX_MESSAGE_BYTES: Final = 64 << 20
TICK_S: Final = 0.1
BOOK_EVERY_S: Final = 1.0
"""How often what is heard of requests is booked, when no window is: each time is a flush."""

HEARTBEAT_S: Final = 0.5
RETRY_S: Final = 1.0
"""How long to wait before a disk that failed is tried again."""

KEEP_EVERY_S: Final = 600.0
"""How often old windows and requests are looked for."""

ASK_EVERY_S: Final = 1.0
"""How often one that is not known is asked who it is."""

UNMETERED_S: Final = 5.0
"""Where nothing is metered, a request is settled so long after its end."""


class LedgerService:
    """One node's ledger: ``run`` until told to ``stop``. Make it in a running loop.

    Attributes:
        problem: Why nothing can be booked at present; None while it can.
    """

    def __init__(
        self,
        spec: LedgerSpec,
        clock: Clock,
        unix_now_s: Callable[[], float],
        open_store: Callable[[], Store],
    ) -> None:
        """Listen; ``open_store`` is called in the thread that writes, until it succeeds.

        Raises:
            ConfigError: An address cannot be used.
            PeerError: An address is in use.
        """
        self._spec = spec
        self._clock = clock
        self._unix_now_s = unix_now_s
        self._open_store = open_store
        self._retention = Retention(window_days=spec.window_days, request_days=spec.request_days)
        self._writer = ThreadPoolExecutor(1, "ledger")
        self._store: Store | None = None
        self._accountant: Accountant | None = None
        self._inbox = NotesInbox({})
        self._uses = Uses({}, lambda _listener, _hour: {}, now_unix_s=0.0)
        self._num_rejected = 0
        self._num_windows = 0
        self._asked_s: dict[int, float] = {}
        self._keep_s = clock.now_s()
        self._book_s = clock.now_s()
        self._has_ended_s: float | None = None
        self._booking_that_failed: Booking | None = None
        self._stopping = asyncio.Event()
        self.problem: str | None = None
        self._socket = GenerationsSocket(
            spec.ledger_address,
            accounting.decode_to_ledger,
            self._take,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        self._socket.pause()  # until there is something to book with
        self._control = ControlChannel(spec.control_address, str(spec.generation).encode())

    @property
    def num_rejected(self) -> int:
        """Messages dropped because they were not what they should be."""
        return self._num_rejected + self._socket.num_rejected

    async def run(self, pid: int) -> None:
        """Serve until ``stop``, then book what is known. ``pid`` is what the supervisor is told.

        Raises:
            ConfigError: The file is no ledger, or one of a later release.
            InvariantError: A bug: what was to be booked contradicts what is.
        """
        ready = LedgerReady(generation=self._spec.generation, pid=pid)
        self._say(ready)
        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(self._take_control_messages(ready)),
                tasks.create_task(self._beat()),
            ]
            await self._write_until_stopped()
            for other in others:
                other.cancel()

    def stop(self) -> None:
        """Let ``run`` come to its end; a disk that fails then is not tried again."""
        self._stopping.set()

    def close(self) -> None:
        """Close the sockets and the file."""
        self._socket.close()
        self._control.close()
        store = self._store
        if store is not None:
            self._writer.submit(store.close)
        self._writer.shutdown(wait=True)

    # ------------------------------------------------------------------------- what is heard

    def _take(self, generation: int, message: accounting.ToLedger) -> None:
        accountant = self._accountant
        if message.generation != generation:
            self._num_rejected += 1
            return
        if accountant is None:
            return  # a message that had come already; who is not acknowledged says it again
        try:
            self._hear(accountant, generation, message)
        except ValueError as error:
            self._num_rejected += 1
            _LOG.warning("ledger_message_refused generation=%d cause=%s", generation, error)

    def _hear(self, accountant: Accountant, generation: int, message: accounting.ToLedger) -> None:
        now_s = self._clock.now_s()
        match message:
            case MetersHello():
                accountant.meters_hello(message)
            case MetersRead():
                if not accountant.meters_read(message):
                    self._ask(generation, now_s)
            case EngineHello():
                accountant.engine_hello(message, now_s=now_s)
                self._answer(generation, LedgerAck(seq=self._inbox.last_booked(generation)))
            case StepLog():
                if not accountant.step_log(message):
                    self._ask(generation, now_s)
            case RequestsNoted():
                self._note(message, now_s)

    def _note(self, noted: RequestsNoted, now_s: float) -> None:
        asks = self._inbox.take(noted, now_s=now_s)
        if noted.seq <= (booked := self._inbox.last_booked(noted.generation)):
            self._answer(noted.generation, LedgerAck(seq=booked))
        if asks:
            self._answer(noted.generation, LedgerHello(generation=self._spec.generation))

    def _ask(self, generation: int, now_s: float) -> None:
        """Ask one that is not known for its hello, now and then."""
        if now_s - self._asked_s.get(generation, float("-inf")) >= ASK_EVERY_S:
            self._asked_s[generation] = now_s
            self._answer(generation, LedgerHello(generation=self._spec.generation))

    def _answer(self, generation: int, message: accounting.FromLedger) -> None:
        with contextlib.suppress(PeerError):  # it asks again when it is back
            self._socket.send_frame(generation, accounting.encode_message(message))

    # ------------------------------------------------------------------------- what is booked

    async def _write_until_stopped(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._store is None:
                    await self._open()
                await self._book_what_is_due(now_s=self._clock.now_s())
                await self._keep()
            except (CapacityError, PeerError) as error:  # PeerError: another has the ledger
                self._note_problem(str(error))
                await self._sleep(RETRY_S)
            else:
                self._note_problem(None)
                await self._sleep(TICK_S)
        with contextlib.suppress(CapacityError):
            await self._book_what_is_due(now_s=math.inf)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not when told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _open(self) -> None:
        store = await self._in_writer(self._open_store)
        try:
            known = await self._in_writer(store.known)
            seqs = await self._in_writer(store.seqs)
            budgets, now_unix_s = self._spec.budgets, self._unix_now_s()
            uses = await self._in_writer(
                lambda: Uses(budgets, store.used_by_hour, now_unix_s=now_unix_s)
            )
        except BaseException:
            await self._in_writer(store.close)
            raise
        self._store, self._uses = store, uses
        self._inbox = NotesInbox(seqs)
        self._accountant = Accountant(known)
        self._socket.resume()

    async def _book_what_is_due(self, *, now_s: float) -> None:
        """Book all that can be, in one transaction.

        Raises:
            CapacityError: The disk fails; the same is tried again by the next call.
        """
        accountant, store = self._accountant, self._store
        if accountant is None or store is None:
            return
        booking = self._booking_that_failed
        if booking is None:
            done = accountant.settle(now_s=now_s)
            if done is None and now_s < self._book_s:
                return
            booking = self._booking(done, self._inbox.take_all(), now_s)
            if booking.is_empty:
                return
            self._booking_that_failed = booking
        await self._in_writer(lambda: store.book(booking))
        self._booking_that_failed = None
        self._book_s = now_s + BOOK_EVERY_S
        self._booked(booking, now_s)

    def _booking(
        self, done: Round | None, notes: tuple[RequestsNoted, ...], now_s: float
    ) -> Booking:
        seqs = self._inbox.due(now_s=self._clock.now_s())
        until_unix_s = None
        if done is not None:
            until_unix_s = done.until_unix_s
            for generation, seq in done.read_logs.items():
                if seq > self._inbox.last_booked(generation):
                    seqs[generation] = seq
        elif self._has_ended_s is not None and now_s >= self._has_ended_s + UNMETERED_S:
            self._has_ended_s = None
            until_unix_s = self._unix_now_s()
        is_metered = self._accountant is not None and bool(self._accountant.meters)
        if notes and not is_metered and self._has_ended_s is None:
            self._has_ended_s = now_s
        return Booking(round=done, notes=notes, seqs=seqs, settled_until_unix_s=until_unix_s)

    def _booked(self, booking: Booking, now_s: float) -> None:
        self._inbox.booked(booking.seqs)
        for generation, seq in booking.seqs.items():
            self._answer(generation, LedgerAck(seq=seq))
        for generation in self._inbox.deaf_to(now_s=now_s):
            self._answer(generation, LedgerHello(generation=self._spec.generation))
        for noted in booking.notes:
            for started in noted.started:
                self._uses.name(started.request_id, started.listener)
            for ended in noted.ended:
                self._uses.name(ended.request_id, ended.listener)
        if booking.round is not None:
            self._num_windows += len(booking.round.settled)
            for settled in booking.round.settled:
                for (leg_id, _), mj in settled.shares.items():
                    self._uses.bear(leg_of(leg_id)[0], settled.window.hour, mj)
            self._report_uses()

    def _report_uses(self) -> None:
        is_metered = self._accountant is not None and bool(self._accountant.meters)
        report = self._uses.report(now_unix_s=self._unix_now_s(), is_metered=is_metered)
        dispatchers = self._inbox.generations
        if report is not None and dispatchers:
            self._answer(dispatchers[-1], report)

    async def _keep(self) -> None:
        """Fold some of what is old, now and then."""
        store, now_s = self._store, self._clock.now_s()
        if store is None or now_s < self._keep_s:
            return
        unix_s = self._unix_now_s()
        more = await self._in_writer(lambda: store.keep(self._retention, now_unix_s=unix_s))
        self._keep_s = now_s if more else now_s + KEEP_EVERY_S

    async def _in_writer(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)

    def _note_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self.problem:
            _LOG.error("ledger_cannot_book cause=%s", problem)
        elif problem is None and self.problem is not None:
            _LOG.info("ledger_books_again")
        self.problem = problem

    # ------------------------------------------------------------------------- control

    async def _take_control_messages(self, ready: LedgerReady) -> None:
        while True:
            match await self._control.recv():
                case LedgerEngineGone(generation=generation):
                    if self._accountant is not None:
                        self._accountant.engine_gone(generation, now_s=self._clock.now_s())
                case control.SayAgain():
                    self._say(ready)
                case _:
                    self._num_rejected += 1

    async def _beat(self) -> None:
        while True:
            accountant = self._accountant
            heartbeat = LedgerHeartbeat(
                generation=self._spec.generation,
                next_s=HEARTBEAT_S,
                problem=self.problem,
                waiting=0 if accountant is None else accountant.num_waiting,
                booked_windows=self._num_windows,
                late_s=0.0 if accountant is None else accountant.late_s,
            )
            self._say(heartbeat)
            await asyncio.sleep(HEARTBEAT_S)

    def _say(self, message: control.Message) -> None:
        with contextlib.suppress(PeerError):  # the supervisor is stuck: who would care
            self._control.send(message)


def decode_spec(spec_bytes: bytes) -> LedgerSpec:
    """Return the spec that came through the fork."""
    return msgspec.msgpack.decode(spec_bytes, type=LedgerSpec)
