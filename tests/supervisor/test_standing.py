import pytest

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import NodeStarted, ProcessExited, ProcessReady, StopAsked
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.shutdown import Patience
from nodeserve.lifecycle.slot import SlotPlan
from nodeserve.supervisor.standing import STOP_EXTENSION_S, Standing, standing_line
from nodeserve.wire.kinds import ProcessKind, Role


class Heard:
    """A notifier that writes down what it is asked to say."""

    def __init__(self, watchdog_s=None, *, has_manager=True):
        self.watchdog_s = watchdog_s
        self.has_manager = has_manager
        self.said = []

    def __getattr__(self, name):
        return lambda *words: self.said.append((name, *words))

    def taken(self):
        said, self.said = self.said, []
        return said


@pytest.fixture
def life():
    """A node of a fork server, a dispatcher, a gateway and one worker, which is starting."""
    plans = [
        SlotPlan("forkserver", ProcessKind.FORKSERVER),
        SlotPlan("dispatcher", ProcessKind.DISPATCHER, "forkserver"),
        SlotPlan("decode-0", ProcessKind.WORKER, "forkserver", Role.DECODE),
        SlotPlan("gateway-api", ProcessKind.GATEWAY, "forkserver"),
    ]
    node = NodeLife(plans, Patience())
    node.handle(NodeStarted(), now_s=0)
    return node


def become_ready(life):
    for _ in range(2):  # what is ready lets others start
        for slot in list(life.slots.values()):
            if slot.generation:
                life.handle(ProcessReady(slot.generation), now_s=1)


def test_ready_is_said_once_and_a_status_only_when_it_changes(life):
    notifier = Heard()
    standing = Standing(notifier)
    standing.turned(life, now_s=0, listening=True)
    assert notifier.taken() == [("ready", "starting: 0 of 4 processes are ready")]
    standing.turned(life, now_s=1, listening=True)
    assert notifier.taken() == []
    become_ready(life)
    standing.turned(life, now_s=2, listening=True)
    assert notifier.taken() == [("status", "ready: 1 of 1 workers serve")]
    assert standing.wake_at_s is None


def test_a_node_is_ready_again_when_its_reload_is_over(life):
    notifier = Heard()
    standing = Standing(notifier)
    standing.turned(life, now_s=0, listening=True)
    notifier.taken()
    standing.reloading()
    standing.turned(life, now_s=1, listening=True)
    assert [name for name, *_ in notifier.taken()] == ["reloading"]
    standing.reloaded()
    standing.turned(life, now_s=2, listening=True)
    standing.turned(life, now_s=3, listening=True)
    assert [name for name, *_ in notifier.taken()] == ["ready"]


def test_the_watchdog_is_put_off_twice_in_its_time_while_the_loop_turns(life):
    notifier = Heard(watchdog_s=10.0)
    standing = Standing(notifier)
    for now_s in (0.0, 1.0, 4.9, 5.0, 6.0, 12.0):
        standing.turned(life, now_s=now_s, listening=True)
    assert notifier.taken().count(("alive",)) == 3
    assert standing.wake_at_s == 17.0


def test_a_supervisor_that_hears_nobody_is_not_alive(life):
    notifier = Heard(watchdog_s=10.0)
    standing = Standing(notifier)
    standing.turned(life, now_s=0, listening=False)
    assert notifier.taken() == []


def test_a_node_that_drains_asks_for_time_until_it_is_over(life):
    notifier = Heard()
    standing = Standing(notifier)
    become_ready(life)
    standing.turned(life, now_s=0, listening=True)
    notifier.taken()
    life.handle(StopAsked(), now_s=1)
    standing.turned(life, now_s=1, listening=True)
    said = notifier.taken()
    assert said[0][0] == "stopping"
    assert said[1] == ("extend", STOP_EXTENSION_S)
    standing.turned(life, now_s=2, listening=True)
    assert notifier.taken() == []
    assert standing.wake_at_s < 1 + STOP_EXTENSION_S  # it wakes up before the time runs out
    standing.turned(life, now_s=standing.wake_at_s, listening=True)
    assert notifier.taken() == [("extend", STOP_EXTENSION_S)]


def test_why_the_daemon_ends_stays_as_its_status():
    notifier = Heard()
    standing = Standing(notifier)
    standing.ended(None)
    standing.ended("worker decode-0 failed to start: no such model\n    | its log")
    assert notifier.taken() == [("status", "worker decode-0 failed to start: no such model")]


def test_without_a_manager_nothing_is_said_and_nobody_wakes_up(life):
    notifier = Heard(watchdog_s=1.0, has_manager=False)
    standing = Standing(notifier)
    standing.turned(life, now_s=0, listening=True)
    assert notifier.taken() == []
    assert standing.wake_at_s is None


def test_the_line_names_what_loads_and_what_is_missing(life):
    life.handle(ProcessReady(Generation(1)), now_s=1)
    life.slots["decode-0"].detail = "loading weights"
    assert standing_line(life) == (
        "starting: 1 of 4 processes are ready; decode-0: loading weights"
    )
    become_ready(life)
    lost = life.slots["decode-0"].generation
    life.handle(ProcessExited(lost, "killed", retryable=True, exit_code=137), now_s=2)
    assert (
        standing_line(life)
        == "unavailable: 0 of 1 workers serve; no worker decodes, decode-0 is backoff"
    )
    life.handle(StopAsked(), now_s=3)
    assert standing_line(life).startswith("draining")
    life.handle(StopAsked(), now_s=4)
    assert standing_line(life) == "stopping: 3 processes are left"


@pytest.mark.parametrize(("watchdog_s", "said"), [(10.0, [("alive",)]), (None, [])])
def test_who_takes_over_has_the_whole_time_of_the_watchdog(life, watchdog_s, said):
    notifier = Heard(watchdog_s)
    standing = Standing(notifier)
    standing.turned(life, now_s=0, listening=True)
    notifier.taken()
    standing.turned(life, now_s=4.9, listening=True)
    standing.leaving()
    assert notifier.taken() == said
