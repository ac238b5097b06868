"""What the operator asks of the tiers."""

from nodeserve.wire.kv_control import (
    KvClear,
    KvDone,
    KvPin,
    KvUnpin,
)
from tests.block_manager.nodes import STRIDE
from tests.kv.tiers import key


def test_the_operator_clears_and_pins_and_sees_what_is_found_most(node) -> None:
    one = node.engine(1).join()
    one.store("a", "b", listener="chat")
    one.store("c", listener="batch")
    one.look_up("a", "b", listener="chat")
    one.release()
    (prefix,) = node.status().prefixes
    assert (prefix.blocks, prefix.hits, prefix.pinned) == (2, 1, False)
    done = node.ask(KvPin(key=prefix.key[:10], call_id=5), KvDone)
    assert (done.call_id, done.detail, done.error) == (5, "2 blocks pinned", None)
    assert node.status().prefixes[0].pinned
    assert node.status().pinned_bytes == 2 * STRIDE
    done = node.ask(KvClear(listener="batch"), KvDone)
    assert done.detail.startswith("1 blocks cleared")
    assert "no listener 'typo'" in node.ask(KvClear(listener="typo"), KvDone).error
    assert node.ask(KvClear(), KvDone).detail.startswith("0 blocks cleared, 2 in use")
    assert node.ask(KvUnpin(), KvDone).detail == "1 prefixes unpinned"
    assert node.ask(KvClear(), KvDone).detail.startswith("2 blocks cleared")
    assert node.ask(KvUnpin(key="ab"), KvDone).exit_code == 65


def test_pins_outlive_a_killed_block_manager(node) -> None:
    one = node.engine(1).join()
    one.store("a", "b")
    one.store("c")
    for name in ("b", "c"):
        assert node.ask(KvPin(key=key(name).hex()), KvDone).error is None
    node.ask(KvUnpin(key=key("c").hex()), KvDone)
    node.kill()
    node.start()
    node.engine(2).join()
    node.gone(1)
    status = node.status_when(lambda status: status.state == "serving")
    assert [(p.key, p.blocks, p.pinned) for p in status.prefixes] == [(key("b").hex(), 2, True)]
    assert node.ask(KvClear(), KvDone).detail.startswith("1 blocks cleared, 2 in use")
    assert node.ask(KvUnpin(), KvDone).detail == "1 prefixes unpinned"
    assert node.ask(KvClear(), KvDone).detail.startswith("2 blocks cleared")


def test_pins_go_with_the_memory_that_they_were_in(node) -> None:
    node.engine(1).join().store("a")
    assert node.ask(KvPin(key=key("a").hex()), KvDone).error is None
    node.gone(1)
    other = node.engine(2).join(kv_format=b"fp8")
    other.store("a")
    node.kill()
    node.start()
    node.engine(3).join(kv_format=b"fp8")
    node.gone(2)
    assert node.status_when(lambda status: status.state == "serving").pinned_bytes == 0


def test_without_an_engine_there_is_a_status_and_nothing_to_pin(node) -> None:
    assert node.status().state == "waiting"
    assert "no engine has used it yet" in node.ask(KvPin(key="ab"), KvDone).error


def test_more_clears_than_can_wait_are_refused(node) -> None:
    node.engine(1).join()
    for number in range(50):
        node.say(KvClear(call_id=number))
    answers = [node.hear(KvDone) for _ in range(50)]
    assert sorted(answer.call_id for answer in answers) == list(range(50))
    refused = [answer for answer in answers if answer.error]
    assert all("clears wait already" in answer.error for answer in refused)
