"""Plays vLLM's scheduler, and the block manager, for the host tier's half in the scheduler."""

from dataclasses import dataclass, field
from types import SimpleNamespace

from nodeserve.engine.tier_client import Counts, Lookup, Reservation
from nodeserve.engine.vllm.host_tier_scheduler import TierScheduler

BLOCK = 4


def key(place):
    return bytes([place]) * 32


@dataclass
class FakeRequest:
    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    skip_reading_prefix_cache: bool = False
    kv_transfer_params: dict | None = None

    @property
    def block_hashes(self):
        return [key(place) for place in range(self.num_tokens // BLOCK)]


class FakeClient:
    """Keeps what was asked; a test answers."""

    def __init__(self):
        self.welcome = object()
        self.counts = Counts()
        self.is_there = True
        self.asked, self.reserved, self.said = [], [], []

    def poll(self):
        pass

    def wait(self, lookup):
        pass

    def lookup(self, listener, keys, *, disk_s):
        if not self.is_there:
            return None
        self.asked.append((listener, keys))
        self.last = Lookup(len(self.asked), 0.0)
        return self.last

    def reserve(self, listener, keys, parent):
        if not self.is_there:
            return None
        call = Reservation(len(self.reserved) + 1, keys, 0.0)
        self.reserved.append((keys, parent, call))
        return call

    def release(self, lookup):
        if not lookup.released:
            self.said.append(("release", lookup.call_id))
        lookup.released = True

    def count_read(self, num_bytes, seconds):
        if num_bytes:
            self.said.append(("read", num_bytes, seconds))

    def count_written(self, num_bytes, seconds):
        if num_bytes:
            self.said.append(("written", num_bytes, seconds))

    def publish(self, slots):
        self.said.append(("publish", slots))

    def abandon(self, slots):
        self.said.append(("abandon", slots))


@dataclass
class FakePool:
    num_gpu_blocks: int = 80
    held: dict = field(default_factory=dict)

    @property
    def blocks(self):
        return list(range(100))

    def touch(self, blocks):
        for block in blocks:
            self.held[block] = self.held.get(block, 0) + 1

    def free_blocks(self, blocks):
        for block in blocks:
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]


class Engine:
    """Plays vLLM's scheduler for one half."""

    def __init__(self, num_ranks=1, pool=None, num_groups=1):
        self.num_groups = num_groups
        self.client, self.pool = FakeClient(), pool or FakePool()
        self.half = TierScheduler(self.client, self.pool, block_size=BLOCK, num_ranks=num_ranks)
        self.tables = {}

    def arrive(self, name, num_tokens, **facts):
        request = FakeRequest(name, num_tokens, **facts)
        # Of as many KV cache groups, whose blocks begin at 10, 30 and so on.
        num_blocks = num_tokens // BLOCK + 2
        firsts = range(10, 10 + 20 * self.num_groups, 20)
        self.tables[name] = tuple([*range(first, first + num_blocks)] for first in firsts)
        self.half.arrive(request)
        return request

    def step(self, **scheduled):
        state = SimpleNamespace(get_block_ids=lambda name: self.tables[name])
        output = SimpleNamespace(num_scheduled_tokens=scheduled, kv_connector_block_state=state)
        return self.half.take_step(output)

    def report(self, report, finished=(), failed=()):
        output = SimpleNamespace(finished_recving=set(finished), failed_recving=set(failed))
        self.half.take_output(output, report)

    def grant(self, number, slots):
        call = self.client.reserved[number][2]
        call.slots, call.answered = slots, True


def found(engine, slots):
    engine.client.last.slots, engine.client.last.answered = slots, True
