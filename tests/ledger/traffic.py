"""A node's life in fast motion: meters, two engines and a dispatcher, with resets and leaps.

It begins two hours ago by the wall clock, so that its first hours are old already.
"""

import time

import msgspec

from nodeserve.wire.accounting import (
    EndedLeg,
    EndedRequest,
    Member,
    RequestsNoted,
    StartedRequest,
    StepLog,
    StepRun,
)
from nodeserve.wire.kinds import Role
from tests.energy.shapes import engine, gpu, meters, read

METERS = [f"GPU-{index}" for index in range(4)]
MAX_RUNNING = 8
MONITOR, PREFILL, DECODE, DISPATCHER = 1, 2, 3, 4


class Traffic:
    """Tells one second of the node after another; ``GPU-3`` has no worker."""

    def __init__(self, node, random) -> None:
        self.random = random
        self.monitor = node.speaker(MONITOR)
        self.monitor_hello = meters(*map(gpu, range(4)), generation=MONITOR)
        self.engines = {
            PREFILL: (node.speaker(PREFILL), Role.PREFILL, ("GPU-0",)),
            DECODE: (node.speaker(DECODE), Role.DECODE, ("GPU-1", "GPU-2")),
        }
        self.dispatcher = node.speaker(DISPATCHER)
        self.begin_s = time.monotonic()
        self.begin_unix_s = time.time() - 7200.0
        self.seconds = 0
        self.counters = dict.fromkeys(METERS, 1000)
        self.num_resets = self.num_leaps = 0
        self.running = []
        self.num_requests = 0
        self.ended = []
        self.is_taking_requests = True
        self.greet()

    @property
    def speakers(self):
        return [speaker for speaker, _, _ in self.engines.values()] + [self.dispatcher]

    def greet(self) -> None:
        self.monitor.greet(self.monitor_hello)
        for generation, (speaker, role, on) in self.engines.items():
            speaker.greet(engine(generation, worker=role.value, role=role, on=on))

    def second(self) -> None:
        """Tell of one second: requests that come and go, steps, and a reading at its end."""
        at_s = self.begin_s + self.seconds
        if self.is_taking_requests:
            self._request(at_s)
        for generation, (speaker, role, _) in self.engines.items():
            speaker.number(lambda seq, g=generation, r=role: self._log(seq, g, r, at_s))
        self.seconds += 1
        self._count()
        if self.random.random() < 0.97:  # else a reading that was not made
            self.monitor.say(self._read(at_s + 1.0))

    def listen(self) -> None:
        self.monitor.listen()
        for speaker in self.speakers:
            speaker.listen()

    def _read(self, at_s):
        told = read(at_s, self.counters, generation=MONITOR)
        return msgspec.structs.replace(told, at_unix_s=self._unix_s(at_s))

    def _unix_s(self, at_s):
        return self.begin_unix_s + at_s - self.begin_s

    def _count(self) -> None:
        for meter in METERS:
            chance = self.random.random()
            if chance < 0.01:
                self.counters[meter] = self.random.randrange(50_000)
                self.num_resets += 1
            elif chance < 0.02:
                self.counters[meter] += 10**8
                self.num_leaps += 1
            else:
                self.counters[meter] += self.random.randrange(60_000, 700_000)

    def _log(self, seq, generation, role, at_s):
        legs = [(number, 1 if role is Role.PREFILL else 2) for number in self.running]
        batch = tuple(Member(f"d4-{number}.{leg}", 1, 100 * number) for number, leg in legs)
        busy_s = self.random.choice([0.0, 0.3, 0.9])
        runs = ()
        if batch and busy_s:
            once = ()
            if self.random.random() < 0.5:
                once = (Member(f"d4-{self.running[-1]}.1", 500, 0),)
            runs = (
                StepRun(at_s + busy_s / 2, 20, busy_s / 2),
                StepRun(at_s + busy_s, 1 if once else 20, busy_s / 2, once=once),
            )
        return StepLog(
            generation=generation,
            seq=seq,
            role=role,
            begin_s=at_s,
            end_s=at_s + 1.0,
            batch=batch,
            runs=runs,
        )

    def _request(self, at_s) -> None:
        unix_s = self._unix_s(at_s)
        started: tuple = ()
        ended: tuple = ()
        if len(self.running) < MAX_RUNNING and self.random.random() < 0.5:
            self.num_requests += 1
            self.running.append(self.num_requests)
            started = (self._started(self.num_requests, unix_s),)
        if self.running and self.random.random() < 0.4:
            number = self.running.pop(self.random.randrange(len(self.running)))
            ended = (self._ended(number, unix_s),)
            self.ended += ended
        if started or ended:
            self.dispatcher.number(
                lambda seq: RequestsNoted(
                    generation=DISPATCHER, seq=seq, started=started, ended=ended
                )
            )

    def _started(self, number, unix_s):
        return StartedRequest(f"d4-{number}", f"cmpl-{number}-0-deadbeef", "chat", "m", unix_s)

    def _ended(self, number, unix_s):
        is_scrap = self.random.random() < 0.2
        return EndedRequest(
            request_id=f"d4-{number}",
            wire_id=f"cmpl-{number}-0-deadbeef",
            listener="chat",
            model="m",
            outcome="abort" if is_scrap else "stop",
            arrived_unix_s=unix_s - 1.0,
            ended_unix_s=unix_s,
            prompt_tokens=number,
            cached_tokens=number // 2,
            output_tokens=7,
            scrap_tokens=9 if is_scrap else 0,
            legs=(
                EndedLeg(f"d4-{number}.1", "prefill", "prefill", is_scrap),
                EndedLeg(f"d4-{number}.2", "decode", "decode", is_scrap),
            ),
        )
