"""Who may use the host tier."""

import pytest

from nodeserve.block_manager.admission import MAX_ENGINES
from nodeserve.wire.kv_tier import ABSENT, KvHello, KvRefused, KvWelcome, KvWho
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
