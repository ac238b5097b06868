"""An engine's line to the block manager: it asks, never waits, and goes on when nobody answers.

One thread owns a client and calls ``poll`` often; whatever has come is taken then. An answer that
stays away past its deadline is a miss. From then on until the block manager is heard again, nothing
is asked: a block manager that hangs costs each engine one deadline.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import zmq

from nodeserve.bus.sockets import is_readable, open_socket, recv_now, send_now
from nodeserve.clock import Clock
from nodeserve.engine.copied import Copied
from nodeserve.errors import PeerError
from nodeserve.wire import kv_tier
from nodeserve.wire.kv_tier import (
    ABSENT,
    HELLO_CALL,
    KEY_BYTES,
    KvAbandon,
    KvFound,
    KvHello,
    KvLookup,
    KvPublish,
    KvRefused,
    KvRelease,
    KvReserve,
    KvReserved,
    KvWelcome,
    KvWho,
    join_slots,
    split_slots,
)

ANSWER_S: Final = 0.05
"""How long an answer may take that needs no disk. It takes 0.1 ms when nothing else runs."""

SOON_MS: Final = 1

HELLO_EVERY_S: Final = 1.0
"""How often a block manager of which nothing was heard meanwhile is greeted: one that is not there,
or has been replaced while nobody asked it anything, and must know who its engines are."""

MAX_CALLS: Final = 4096
"""Look-ups and reservations without an answer; further ones find nothing."""

MAX_MESSAGES_A_POLL: Final = 256

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lookup:
    """What one request hopes to find: ``slots`` per key once ``answered``, ABSENT for misses.

    Blocks on disk are waited for until ``disk_until_s``, once somebody has said that there are any.
    ``released`` once its pins are given back, after which its slots are not to be read.
    """

    call_id: int
    until_s: float
    disk_until_s: float = 0.0
    slots: list[int] = field(default_factory=list)
    answered: bool = False
    released: bool = False
    waited: bool = False


@dataclass(slots=True)
class Reservation:
    """Slots for blocks to be stored: ``slots`` per key once ``answered``, ABSENT for "not now"."""

    call_id: int
    keys: bytes
    until_s: float
    slots: list[int] = field(default_factory=list)
    answered: bool = False


_Call = TypeVar("_Call", Lookup, Reservation)


@dataclass(slots=True)
class Counts:
    """What was asked and what came of it, since the start."""

    lookups: int = 0
    unanswered: int = 0
    hit_blocks: int = 0
    missed_blocks: int = 0
    refused_frames: int = 0


class TierClient:
    """One engine's side of ``wire.kv_tier``. Not thread-safe."""

    def __init__(
        self,
        address: str,
        hello: KvHello,
        clock: Clock,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        """Greet the block manager at ``address``, whether it is there yet or not.

        Args:
            address: Its ROUTER's.
            hello: Who we are; what we hold is filled in when it is said again.
            clock: For deadlines.
            context: ZeroMQ's; None for the process's own.
        """
        self._hello = hello
        self._clock = clock
        self._socket = open_socket(
            context or zmq.Context.instance(), zmq.DEALER, identity=str(hello.generation).encode()
        )
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._welcome: KvWelcome | None = None
        self._refused: str | None = None
        self._silent = False
        self._greeted_s = self._heard_s = clock.now_s()
        self._last_call = 0
        self._lookups: dict[int, Lookup] = {}
        self._pins: dict[int, Lookup] = {}
        self._old_pins: dict[int, Lookup] = {}
        self._reservations: dict[int, Reservation] = {}
        self._writing: dict[int, bytes] = {}
        self._read = Copied()
        self._written = Copied()
        self.counts = Counts()
        self._send(hello)

    @property
    def tier(self) -> KvWelcome | None:
        """The tier that may be used now; None before it is there and while it does not answer."""
        return None if self._silent else self._welcome

    @property
    def welcome(self) -> KvWelcome | None:
        """The tier that slots heard of are slots of, even while it does not answer."""
        return self._welcome

    @property
    def refusal(self) -> str | None:
        """Why this engine gets no tier; None unless the block manager said so."""
        return self._refused

    @property
    def is_waiting(self) -> bool:
        """Whether a reservation is to be answered, or slots are still to be written."""
        return bool(self._reservations or self._writing)

    # --------------------------------------------------------------- asking

    def lookup(self, listener: str, keys: bytes, *, disk_s: float) -> Lookup | None:
        """Ask where blocks are; None when there is nobody to ask.

        Args:
            listener: Whose request it is.
            keys: Joined, in the order of the prompt.
            disk_s: How long blocks on disk are worth waiting for.
        """
        if self.tier is None or not keys or self._num_calls >= MAX_CALLS:
            return None
        until_s = self._clock.now_s() + ANSWER_S
        call = Lookup(self._next_call(), until_s, until_s + disk_s)
        self._lookups[call.call_id] = call
        self.counts.lookups += 1
        deadline_s = call.disk_until_s if disk_s > 0 else 0.0
        self._send(
            KvLookup(call_id=call.call_id, listener=listener, keys=keys, deadline_s=deadline_s)
        )
        return call

    def release(self, lookup: Lookup) -> None:
        """Give a look-up's pins back. Harmless when done before."""
        if lookup.released:
            return
        lookup.released = True
        self._lookups.pop(lookup.call_id, None)
        if self._pins.pop(lookup.call_id, None) is not None or not lookup.answered:
            self._send_release(lookup.call_id)
        elif self._old_pins.pop(lookup.call_id, None) is not None and not self._old_pins:
            self._send_release(HELLO_CALL)

    def count_read(self, num_bytes: int, seconds: float) -> None:
        """Count what was copied out of slots; the next release tells the block manager."""
        self._read.add(num_bytes, seconds)

    def count_written(self, num_bytes: int, seconds: float) -> None:
        """Count what was copied into slots; the next ``publish`` tells the block manager."""
        self._written.add(num_bytes, seconds)

    def reserve(self, listener: str, keys: bytes, parent: bytes) -> Reservation | None:
        """Ask for slots to store blocks in; None when there is nobody to ask."""
        if self.tier is None or self._num_calls >= MAX_CALLS:
            return None
        call = Reservation(self._next_call(), keys, self._clock.now_s() + ANSWER_S)
        self._reservations[call.call_id] = call
        self._send(KvReserve(call_id=call.call_id, listener=listener, keys=keys, parent=parent))
        return call

    def publish(self, slots: list[int]) -> None:
        """Say that reserved slots are written."""
        self._end_writing(slots)
        num_bytes, us = self._written.take()
        self._send(KvPublish(slots=join_slots(slots), written_bytes=num_bytes, written_us=us))

    def abandon(self, slots: list[int]) -> None:
        """Say that reserved slots will not be written, or are not to be trusted."""
        self._end_writing(slots)
        self._send(KvAbandon(slots=join_slots(slots)))

    # ------------------------------------------------------------ listening

    def poll(self) -> None:
        """Take what has come, give up what is overdue, and greet who is not there."""
        for _ in range(MAX_MESSAGES_A_POLL):
            if not is_readable(self._socket):
                break
            self._take(recv_now(self._socket))
        now_s = self._clock.now_s()
        self._give_up_overdue(now_s)
        last_s = self._greeted_s if self.tier is None else max(self._greeted_s, self._heard_s)
        if self._refused is None and now_s >= last_s + HELLO_EVERY_S:
            self._greet()

    def wait(self, lookup: Lookup) -> None:
        """Give an unanswered look-up a millisecond more, once: it mostly takes a tenth of that.

        Without it an engine that has nothing else to do sleeps as long, answer or not.
        """
        if not lookup.answered and not lookup.waited:
            lookup.waited = True
            self._socket.poll(SOON_MS)
            self.poll()

    def joined(self, within_s: float) -> KvWelcome | None:
        """Wait until the block manager has answered, but no longer; returns its tier, if any."""
        until_s = self._clock.now_s() + within_s
        self.poll()
        while self._welcome is None and self._refused is None:
            left_s = until_s - self._clock.now_s()
            if left_s <= 0:
                break
            self._socket.poll(max(SOON_MS, int(left_s * 1e3)))
            self.poll()
        return self._welcome

    def close(self) -> None:
        """Hang up. The block manager learns from the supervisor what that gives back."""
        self._socket.close(linger=0)

    @property
    def _num_calls(self) -> int:
        return len(self._lookups) + len(self._reservations)

    def _next_call(self) -> int:
        self._last_call += 1
        return self._last_call

    def _take(self, frames: list[bytes]) -> None:
        try:
            message = kv_tier.decode_answer(frames[-1])
            match message:
                case KvWelcome():
                    self._welcomed(message)
                case KvRefused():
                    self._refused, self._welcome = message.reason, None
                    _log.warning("kv_tier_refused cause=%s", message.reason)
                case KvWho():
                    self._forget_calls()
                    self._greet()
                case KvFound():
                    self._found(message, split_slots(message.slots))
                case KvReserved():
                    self._reserved(message, split_slots(message.slots))
        except ValueError as error:
            self.counts.refused_frames += 1
            _log.warning("kv_tier_garbage cause=%s", error)
            return
        self._silent = False
        self._heard_s = self._clock.now_s()

    def _welcomed(self, message: KvWelcome) -> None:
        if self._welcome == message:
            return
        if self._welcome is not None and self._welcome.generation != message.generation:
            self._forget_calls()
            if not self._old_pins:  # what the hello said it reads was released before this came
                self._send_release(HELLO_CALL)
        self._welcome, self._refused = message, None
        _log.info("kv_tier_joined block_manager=%d slots=%d", message.generation, message.num_slots)

    def _found(self, message: KvFound, slots: list[int]) -> None:
        lookup = self._lookups.get(message.call_id)
        if lookup is None:
            return  # given up or released meanwhile; its release is on its way
        lookup.slots = slots
        if message.num_pending:
            lookup.until_s = lookup.disk_until_s
            return
        del self._lookups[lookup.call_id]
        self._answer(lookup)

    def _answer(self, lookup: Lookup) -> None:
        lookup.answered = True
        num_hits = sum(slot != ABSENT for slot in lookup.slots)
        self.counts.hit_blocks += num_hits
        self.counts.missed_blocks += len(lookup.slots) - num_hits
        if num_hits:
            self._pins[lookup.call_id] = lookup
        else:
            lookup.released = True

    def _reserved(self, message: KvReserved, slots: list[int]) -> None:
        call = self._reservations.pop(message.call_id, None)
        if call is None:
            given = [slot for slot in slots if slot != ABSENT]
            if given:
                self._send(KvAbandon(slots=join_slots(given)))
            return
        call.slots, call.answered = slots, True
        for place, slot in enumerate(slots):
            if slot != ABSENT:
                self._writing[slot] = call.keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]

    def _end_writing(self, slots: list[int]) -> None:
        for slot in slots:
            self._writing.pop(slot, None)

    # --------------------------------------------------------------- losing

    def _give_up_overdue(self, now_s: float) -> None:
        for lookup in _overdue(self._lookups, now_s):
            # What was found before the disk's deadline may still be read.
            self._lookups.pop(lookup.call_id)
            self.counts.unanswered += 1
            if lookup.slots:
                self._answer(lookup)
            else:
                lookup.answered = lookup.released = True
                self._send_release(lookup.call_id)
                self._ask_no_more(now_s)
        for reservation in _overdue(self._reservations, now_s):
            self._reservations.pop(reservation.call_id)
            reservation.answered = True
            self.counts.unanswered += 1
            self._ask_no_more(now_s)

    def _ask_no_more(self, now_s: float) -> None:
        if not self._silent:
            self._silent = True
            self._greeted_s = now_s
            _log.warning("kv_tier_silent for_s=%g", ANSWER_S)

    def _forget_calls(self) -> None:
        """Take every open call for a miss: a new block manager has not heard of them."""
        for lookup in self._lookups.values():
            lookup.slots = []
            lookup.answered = lookup.released = True
        for reservation in self._reservations.values():
            reservation.answered = True
        self._lookups.clear()
        self._reservations.clear()
        self._old_pins |= self._pins
        self._pins.clear()

    def _greet(self) -> None:
        self._greeted_s = self._clock.now_s()
        held = self._old_pins | self._pins
        reading = {slot for one in held.values() for slot in one.slots if slot != ABSENT}
        self._send(
            msgspec.structs.replace(
                self._hello,
                reading=join_slots(sorted(reading)),
                writing=join_slots(list(self._writing)),
                writing_keys=b"".join(self._writing.values()),
            )
        )

    def _send_release(self, call_id: int) -> None:
        num_bytes, us = self._read.take()
        self._send(KvRelease(call_ids=(call_id,), read_bytes=num_bytes, read_us=us))

    def _send(self, message: kv_tier.Request) -> None:
        try:
            send_now(self._socket, [kv_tier.encode_message(message)])
        except PeerError:
            self._silent = True  # its queue is full: it has not read for a long time


def _overdue(calls: Mapping[int, _Call], now_s: float) -> list[_Call]:
    return [call for call in calls.values() if call.until_s <= now_s]
