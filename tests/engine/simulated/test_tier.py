"""Claims about what a simulated engine does with a tier below its GPU."""

import itertools

import pytest

from nodeserve.engine.simulated.scheduler import Scheduler
from nodeserve.engine.simulated.sequence import Sequence
from nodeserve.engine.simulated.tier import NoTier, Tier, key_of
from nodeserve.engine.tier_client import Lookup, Reservation
from nodeserve.errors import PeerError
from nodeserve.wire.engine_core import LISTENER
from nodeserve.wire.kv_tier import ABSENT, KEY_BYTES, split_keys
from tests.engine.simulated.conftest import VOCABULARY, Bench, make_request

PROMPT = list(range(1, 18))
"""Four full blocks of four tokens, and one token more."""


class Shelf:
    """A block manager and its memory in one: what is published may be found."""

    def __init__(self):
        self.slot_of: dict[bytes, int] = {}
        self.content: dict[int, bytes] = {}
        self.is_there = True
        self.answers = True
        self.refuses = False
        self.open: list[Lookup | Reservation] = []
        self.pins: dict[int, Lookup] = {}
        self.heard: list[tuple[str, str, int]] = []
        self.abandoned: list[int] = []
        self.read, self.written = [0, 0.0], [0, 0.0]
        self._calls = itertools.count(1)

    @property
    def is_waiting(self):
        return bool(self.open)

    def lookup(self, listener, keys, *, disk_s):
        if not self.is_there:
            return None
        call = Lookup(next(self._calls), 0.0)
        call.slots = [self.slot_of.get(key, ABSENT) for key in split_keys(keys)]
        self.heard.append(("lookup", listener, len(call.slots)))
        self.open.append(call)
        return call

    def reserve(self, listener, keys, parent):
        if not self.is_there:
            return None
        call = Reservation(next(self._calls), keys, 0.0)
        self.heard.append(("reserve", listener, len(keys) // KEY_BYTES))
        self.open.append(call)
        return call

    def poll(self):
        if not self.answers:
            return
        for call in self.open:
            call.answered = True
            if isinstance(call, Lookup):
                if not call.released and any(slot != ABSENT for slot in call.slots):
                    self.pins[call.call_id] = call
            else:
                keys = split_keys(call.keys)
                call.slots = [ABSENT if key in self.slot_of else self._new(key) for key in keys]
        self.open.clear()

    def _new(self, key):
        return int.from_bytes(key[:3], "little")

    def release(self, lookup):
        lookup.released = True
        self.pins.pop(lookup.call_id, None)

    def count_read(self, num_bytes, seconds):
        self.read = [self.read[0] + num_bytes, self.read[1] + seconds]

    def count_written(self, num_bytes, seconds):
        self.written = [self.written[0] + num_bytes, self.written[1] + seconds]

    def publish(self, slots):
        for slot in slots:
            self.slot_of[self.content[slot]] = slot

    def abandon(self, slots):
        self.abandoned += slots

    def write(self, slot, key):
        if self.refuses:
            raise PeerError("the host tier is gone")
        self.content[slot] = key

    def holds(self, slot, key):
        if self.refuses:
            raise PeerError("the host tier is gone")
        return self.content[slot] == key


class TieredBench(Bench):
    """A bench whose engine has the shelf below it."""

    def __init__(self, shelf, **limits):
        super().__init__(**limits)
        self.shelf = shelf
        self.tier = Tier(shelf, shelf, self.limits)
        self.scheduler = Scheduler(self.limits, self.tier)

    def settle(self):
        """Let stores under way end."""
        self.step(60)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def bench(shelf):
    return TieredBench(shelf)


def filled(bench):
    """Compute the prompt once and let it be stored; return its answer."""
    tokens = bench.run("first", PROMPT, max_tokens=3)
    bench.settle()
    return tokens


def another(shelf, **limits):
    """Return an engine whose own cache is empty."""
    return TieredBench(shelf, **limits)


def test_full_blocks_are_stored_and_found_by_another_engine(bench, shelf):
    expected = filled(bench)
    assert len(shelf.slot_of) == 4
    assert bench.tier.counts.stored_blocks == 4
    other = another(shelf)
    assert other.run("second", PROMPT, max_tokens=3) == expected
    stats = other.stats("second")
    assert stats["num_external_cached_tokens"] == 16
    assert stats["num_computed_tokens"] == 1
    assert other.tier.counts.loaded_blocks == 4
    took_s = bench.limits.host_link.transfer_s(4 * bench.limits.block_bytes)
    assert shelf.read == shelf.written == [4 * bench.limits.block_bytes, pytest.approx(took_s)]
    assert other.idle()
    assert not shelf.pins


def test_what_the_engine_itself_holds_is_not_loaded(bench, shelf):
    filled(bench)
    bench.run("again", PROMPT, max_tokens=1)
    assert bench.stats("again")["num_local_cached_tokens"] == 16
    assert bench.tier.counts.loaded_blocks == 0
    assert not shelf.pins


def test_a_block_is_offered_once(bench, shelf):
    filled(bench)
    offered = [count for what, _, count in shelf.heard if what == "reserve"]
    other = another(shelf)
    other.run("second", PROMPT, max_tokens=1)
    other.settle()
    assert [count for what, _, count in shelf.heard if what == "reserve"] == offered


def test_output_is_stored_too_behind_its_prompt(bench, shelf):
    bench.run("long", PROMPT, max_tokens=12)
    bench.settle()
    assert len(shelf.slot_of) == 6


def test_a_request_waits_for_its_answer_and_nobody_else_does(bench, shelf):
    shelf.answers = False
    bench.add("waits", PROMPT, max_tokens=1)
    assert bench.step() == []
    assert bench.scheduler.num_requests == 1
    shelf.is_there = False
    bench.run("passes", [7] * 9, max_tokens=1)
    shelf.answers = True
    assert bench.run("last", [8] * 9, max_tokens=1)
    bench.step(2)
    assert bench.has_ended("waits")


def test_a_load_takes_its_time_beside_the_steps_of_others(bench, shelf):
    filled(bench)
    other = another(shelf)
    other.add("loads", PROMPT, max_tokens=1)
    assert other.run("runs", [7] * 9, max_tokens=2)
    assert [one.request_id for one in other.tier.loading] == ["loads"]
    assert other.scheduler.take_stats()["num_running_reqs"] == 0
    assert other.tier.wake_s(other.now_s) <= other.now_s + 5  # 4 blocks of 1000 bytes, and setup
    other.step(6)
    assert other.has_ended("loads")


def test_a_wrong_block_is_counted_and_computed_again(bench, shelf, caplog):
    expected = filled(bench)
    other = another(shelf)
    third = shelf.slot_of[sorted_keys(PROMPT)[2]]
    shelf.content[third] = b"x" * KEY_BYTES
    assert other.run("second", PROMPT, max_tokens=3) == expected
    counts = other.tier.counts
    assert (counts.corrupt, counts.load_failures, counts.loaded_blocks) == (1, 1, 2)
    stats = other.stats("second")
    assert (stats["num_external_cached_tokens"], stats["num_computed_tokens"]) == (8, 9)
    assert "kv_load_corrupt" in caplog.text
    assert other.idle()
    assert not shelf.pins


def sorted_keys(prompt):
    sequence = Sequence(make_request("k", prompt), VOCABULARY, max_model_len=300, order=0)
    sequence.hash_up_to(4, 4)
    return [key_of(one, None) for one in sequence.hashes]


def test_a_tier_that_goes_while_blocks_load_costs_the_load(bench, shelf, caplog):
    expected = filled(bench)
    other = another(shelf)
    other.add("second", PROMPT, max_tokens=3)
    other.step()
    shelf.refuses = True
    while not other.has_ended("second"):
        other.step()
    assert other.tokens["second"] == expected
    assert other.tier.counts.load_failures == 1
    assert other.tier.counts.corrupt == 0
    assert "kv_load_failed" in caplog.text


def test_blocks_that_cannot_be_written_are_given_back(bench, shelf):
    shelf.refuses = True
    bench.run("first", PROMPT, max_tokens=1)
    bench.settle()
    assert len(shelf.abandoned) == 4
    assert not shelf.slot_of


def test_a_gap_ends_what_is_loaded(bench, shelf):
    filled(bench)
    del shelf.slot_of[sorted_keys(PROMPT)[1]]
    other = another(shelf)
    other.run("second", PROMPT, max_tokens=1)
    assert other.tier.counts.loaded_blocks == 1


def test_an_abort_gives_pins_back_whenever_it_comes(bench, shelf):
    filled(bench)
    for steps in range(8):
        other = another(shelf)
        other.add("second", PROMPT, max_tokens=1)
        other.step(steps)
        other.scheduler.abort(["second"])
        other.step(8)
        assert not shelf.pins, steps
        assert other.idle()


def test_salted_prompts_find_nothing_of_others(bench, shelf):
    filled(bench)
    other = another(shelf)
    other.run("salted", PROMPT, max_tokens=1, salt="s")
    assert other.tier.counts.loaded_blocks == 0


def test_requests_say_whose_they_are(bench, shelf):
    params = {"kv_transfer_params": {LISTENER: "batch"}}
    bench.run("a", PROMPT, max_tokens=1, extra_args=params)
    assert {listener for _, listener, _ in shelf.heard} == {"batch"}


def test_an_engine_without_a_block_manager_asks_nothing_and_serves(bench, shelf):
    shelf.is_there = False
    assert bench.run("a", PROMPT, max_tokens=2)
    assert not shelf.heard
    assert NoTier().wake_s(0.0) == float("inf")


def test_small_prompts_are_not_asked_for(bench, shelf):
    bench.run("a", [1, 2, 3, 4], max_tokens=1)
    assert [what for what, _, _ in shelf.heard] == ["reserve"]
