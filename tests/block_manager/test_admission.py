"""Who may use the host tier."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from nodeserve.block_manager.admission import MAX_ENGINES, MAX_KEPT, Admission
from nodeserve.clock import ManualClock
from nodeserve.kv.tier_events import EngineJoined
from nodeserve.wire.kv_tier import (
    ABSENT,
    KvHello,
    KvLookup,
    KvPublish,
    KvRefused,
    KvRelease,
    KvWelcome,
    KvWho,
    join_slots,
)
from tests.block_manager.nodes import write_model


@pytest.mark.parametrize(
    ("hello", "text"),
    [
        ({"block_bytes": 20_000}, "blocks of 10000 bytes, this engine's 20000"),
        ({"kv_format": b"fp8"}, "other weights or KV format"),
        ({"generation": 7}, "generation 7 on the socket of 2"),
        ({"block_bytes": 0}, "blocks of 0 bytes"),
        ({"writing": b"1234"}, "no list of slots"),
        ({"model": "/nowhere"}, "no files"),
    ],
)
def test_engines_that_do_not_fit_are_refused_with_the_reason(node, hello, text) -> None:
    node.engine(1).join()
    answer = node.engine(2).hello(**hello)
    assert isinstance(answer, KvRefused)
    assert text in answer.reason
    assert text in node.status().refused_engines[2]


class FakeTiers:
    """Keeps in one list what happens to engines, in its order."""

    def __init__(self) -> None:
        self.desk: SimpleNamespace | None = None
        self.happened = []
        self.welcomed = asyncio.Event()

    async def open_tier(self, hello, namespace, known) -> None:
        engines = {}
        shape = SimpleNamespace(block_bytes=hello.block_bytes)
        tier = SimpleNamespace(engines=engines)
        self.desk = SimpleNamespace(namespace=namespace, shape=shape, tier=tier, tell=self.tell)

    def tell(self, event) -> None:
        self.happened.append(event)

    def serve(self, generation, request) -> None:
        self.happened.append((generation, request))

    def has_foreign_slots(self, hello, namespace) -> bool:
        return False

    def welcome(self, generation) -> None:
        self.happened.append(generation)
        self.welcomed.set()


@contextlib.contextmanager
def admitting(tmp_path):
    tiers = FakeTiers()
    made = Admission(tiers, ManualClock(), state_dir=tmp_path, runtime_dir=tmp_path, grace_s=10.0)
    made.tiers = tiers
    yield made
    made.close()


def a_hello(tmp_path):
    model = str(write_model(tmp_path / "model"))
    return KvHello(worker="w", generation=1, pid=1, model=model, kv_format=b"f", block_bytes=4096)


async def let_in(admission) -> None:
    async with asyncio.timeout(20):
        await admission.tiers.welcomed.wait()


async def test_what_an_engine_ends_before_it_is_let_in_is_ended_then(tmp_path) -> None:
    """Else what its hello says it reads and writes would be held until it dies."""
    hello = a_hello(tmp_path)
    early, ended = KvRelease(call_ids=(0,)), KvPublish(slots=join_slots([3]))
    with admitting(tmp_path) as admission:
        assert not admission.keep(1, early)
        admission.hello(1, hello)
        assert admission.keep(1, early)
        admission.hello(1, hello)  # says anew what it holds
        assert admission.keep(1, KvLookup(call_id=1, listener="l", keys=b""))
        assert admission.keep(1, ended)
        await let_in(admission)
        joined, *rest = admission.tiers.happened
        assert isinstance(joined, EngineJoined)
        assert rest == [(1, ended), 1]
        assert not admission.keep(1, ended)


async def test_an_engine_that_says_too_much_before_it_is_let_in_is_to_greet_anew(tmp_path) -> None:
    hello, ended = a_hello(tmp_path), KvPublish(slots=b"")
    with admitting(tmp_path) as admission:
        admission.hello(1, hello)
        kept = [admission.keep(1, ended) for _ in range(MAX_KEPT + 1)]
        assert kept == [True] * MAX_KEPT + [False]
        admission.hello(1, hello)
        await let_in(admission)
        assert len(admission.tiers.happened) == 2


def test_other_weights_of_the_same_shape_share_nothing(node, tmp_path) -> None:
    node.engine(1).join()
    other = write_model(tmp_path / "other", b"v")
    answer = node.engine(2).hello(model=str(other))
    assert isinstance(answer, KvRefused)
    same = write_model(tmp_path / "same", b"w")
    node.engine(3).join(model=str(same))


def test_a_block_larger_than_an_arena_is_refused(node) -> None:
    answer = node.engine(1).hello(block_bytes=2 << 20)
    assert "raise kv.host.size or lower the block size" in answer.reason


def test_a_new_model_gets_a_tier_of_its_own_when_nobody_uses_the_old_one(node, tmp_path) -> None:
    one = node.engine(1).join()
    one.store("a")
    node.status_when(lambda status: status.tiers[0].stores == 1)
    node.gone(1)
    two = node.engine(2).join(kv_format=b"fp8", block_bytes=4096)
    assert two.welcome.slot_stride == 4096
    assert two.welcome.namespace != one.welcome.namespace
    assert two.look_up("a") == [ABSENT]


def test_a_dead_engine_that_thaws_is_refused(node) -> None:
    one = node.engine(1).join()
    node.gone(1)
    node.status()
    one.publish([0])
    assert one.hear(KvWho)
    assert "was declared dead" in one.hello().reason


def test_a_new_model_waits_while_engines_of_a_predecessor_may_use_the_memory(node) -> None:
    node.engine(1).join()
    node.kill()
    node.start()
    two = node.engine(2, kv_format=b"fp8")
    two.say(KvHello(**two._hello))
    node.status()
    node.gone(1)
    assert two.hear(KvWelcome)


def test_no_more_engines_than_the_bound_are_let_in(node) -> None:
    first = node.engine(1).join()
    for generation in range(2, MAX_ENGINES + 1):
        node.engine(generation).join()
    answer = node.engine(MAX_ENGINES + 1).hello()
    assert f"{MAX_ENGINES} engines use the host tier already" in answer.reason
    assert isinstance(first.hello(), KvWelcome)
