"""A scheduler with round sizes, and requests for it."""

import itertools

import pytest

from nodeserve.engine.simulated import wire
from nodeserve.engine.simulated.limits import Limits
from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.simulated.tokens import Vocabulary
from nodeserve.perf_model.latency import Link

VOCABULARY = Vocabulary(128_256, (128_000,))


def make_limits(**changes) -> Limits:
    sizes = {
        "generation": 3,
        "num_blocks": 100,
        "block_size": 4,
        "block_bytes": 1000,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "link": Link(setup_s=1.0, bytes_per_s=1000.0),
        "host_link": Link(setup_s=1.0, bytes_per_s=1000.0),
        "speedup": 1.0,
    }
    return Limits(**(sizes | changes))


def make_request(request_id, prompt, *, priority=0, salt=None, **sampling) -> wire.Request:
    return wire.Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=wire.Sampling(**sampling),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=salt,
        data_parallel_rank=None,
        priority=priority,
    )


def whole(row: wire.Row) -> wire.Row:
    """Return a row with the fields behind its end, which are nil."""
    return [*row, *[None] * (len(wire.FIELDS.output) - len(row))]


class Bench:
    """Drives a scheduler step by step in virtual time, one second a step."""

    def __init__(self, **limits) -> None:
        self.limits = make_limits(**limits)
        self.scheduler = Scheduler(self.limits)
        self.now_s = 100.0
        self.tokens: dict[str, list[int]] = {}
        self.last_rows: dict[str, wire.Row] = {}
        self.first_rows: dict[str, wire.Row] = {}
        self._order = itertools.count()

    def add(self, request_id, prompt, **sampling) -> None:
        request = make_request(request_id, prompt, **sampling)
        sequence = Sequence(request, VOCABULARY, max_model_len=300, order=next(self._order))
        self.tokens[request_id] = []
        self.scheduler.add(sequence, self.now_s)

    def step(self, count=1) -> list[str]:
        """Return which requests had an output in the last of ``count`` steps."""
        names: list[str] = []
        for _ in range(count):
            names = []
            if self.scheduler.plan(self.now_s):
                for row in self.scheduler.finish_step(self.now_s):
                    names.append(row[0])
                    self.tokens[row[0]] += row[wire.TOKENS]
                    self.first_rows.setdefault(row[0], whole(row))
                    self.last_rows[row[0]] = whole(row)
            self.now_s += 1.0
            self.scheduler.check()
        return names

    def run(self, request_id, prompt, **sampling) -> list[int]:
        """Add a request, run until it ends and return its tokens."""
        self.add(request_id, prompt, **sampling)
        while not self.has_ended(request_id):
            self.step()
        return self.tokens[request_id]

    def has_ended(self, request_id) -> bool:
        row = self.last_rows.get(request_id)
        return row is not None and row[wire.FINISH_REASON] is not None

    def stats(self, request_id) -> dict[str, int]:
        stats: dict[str, int] = self.first_rows[request_id][wire.PREFILL_STATS]
        return stats

    def idle(self) -> bool:
        return self.scheduler.num_requests == 0 and self.usage() == 0

    def usage(self) -> float:
        return float(self.scheduler.take_stats()["kv_cache_usage"])


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench():
    return Bench


@pytest.fixture
def limits_with():
    return make_limits


@pytest.fixture
def request_with():
    return make_request


@pytest.fixture
def vocabulary() -> Vocabulary:
    return VOCABULARY
