import logging

import pytest

from nodeserve.lifecycle.messages import (
    DrainAsked,
    FindingsReported,
    ProcessReady,
    RestartAsked,
    RoleAsked,
    TimeElapsed,
    WorkerEmptied,
)
from nodeserve.supervisor.chronicle import Chronicle
from nodeserve.wire.kinds import Role
from tests.lifecycle.living import Node
from tests.lifecycle.wrong import Ward, finding


class Story:
    """A node that is up, and what its chronicle says of each further event."""

    def __init__(self, caplog):
        caplog.set_level(logging.INFO)
        self._caplog = caplog
        self.node = Node()
        self.chronicle = Chronicle(self.node.life)
        self.node.up()
        self.lines()

    def lines(self):
        self._caplog.clear()
        self.chronicle.look(now_s=self.node.now_s)
        return [(line.levelname, line.message) for line in self._caplog.records]

    def after(self, event, at_s=None):
        self.node.tell(event, at_s)
        return self.lines()


@pytest.fixture
def story(caplog):
    return Story(caplog)


def test_a_start_says_who_is_ready_and_nothing_twice(caplog):
    caplog.set_level(logging.INFO)
    node = Node()
    chronicle = Chronicle(node.life)
    node.up()
    for _ in range(2):
        chronicle.look(now_s=0.0)
    names = [line.split()[1] for line in caplog.messages if line.startswith("process_ready")]
    assert names == [f"name={name}" for name in node.life.slots]
    assert len(caplog.messages) == len(names)


def test_a_crash_and_the_way_back_are_told(story):
    story.node.exits("decode-0")
    assert story.lines() == [
        ("INFO", "process_backoff name=decode-0 restart_in_s=0.0"),
        ("WARNING", "node_degraded detail='no worker decodes, decode-0 is backoff'"),
    ]
    generation = story.node.life.slots["gateway-api"].generation + 1
    restarting, detail = story.after(TimeElapsed(), at_s=0.5)
    assert restarting == ("INFO", f"process_restarting name=decode-0 generation={generation}")
    assert detail[0] == "WARNING"
    story.node.engine_ready("decode-0")
    story.node.routed("decode-0")
    assert story.lines() == [
        ("INFO", f"process_ready name=decode-0 generation={generation} restarts=1"),
        ("INFO", "node_ready_again"),
    ]


def test_a_drain_and_its_end_are_told(story):
    story.after(RoleAsked("prefill-0", Role.AGGREGATED))
    assert story.after(DrainAsked("decode-0")) == [
        ("INFO", "worker_draining name=decode-0 then=stay_down")
    ]
    assert story.after(WorkerEmptied(story.node.generation("decode-0"))) == []
    story.node.exits("decode-0", exit_code=0)
    assert story.lines() == [
        ("INFO", "worker_down name=decode-0: `nodeserve restart` brings it back")
    ]


def test_a_restart_is_told_as_one(story):
    story.after(RoleAsked("prefill-0", Role.AGGREGATED))
    assert story.after(RestartAsked("decode-0", immediately=False)) == [
        ("INFO", "worker_draining name=decode-0 then=restart")
    ]


def test_a_role_is_told_with_the_one_before(story):
    assert story.after(RoleAsked("prefill-0", Role.AGGREGATED)) == [
        ("INFO", "worker_role name=prefill-0 role=aggregated before=prefill")
    ]


def test_who_does_not_come_back_is_an_error_with_its_cause(story):
    story.node.exits("decode-0", cause="no such model\n    | log", retryable=False)
    level, message = story.lines()[0]
    assert level == "ERROR"
    assert message == (
        "process_failed name=decode-0 cause='no such model': `nodeserve restart decode-0` "
        "tries again"
    )


def test_a_node_that_cannot_serve_is_told_with_the_command_that_mends_it(story):
    story.node.exits("dispatcher", cause="no", retryable=False)
    level, message = story.lines()[-1]
    assert level == "WARNING"
    cure = "`nodeserve restart dispatcher` tries again"
    assert message.startswith(f"node_unavailable detail='dispatcher is failed ({cure})")


def test_a_finding_is_told_once_and_so_is_its_end(caplog):
    story = Story(caplog)
    wrong = finding("g7", "warn")
    assert story.after(FindingsReported((wrong,))) == [
        (
            "WARNING",
            "device_finding meter=g7 signal=xid_1 severity=error action=warn detail='it is so'",
        )
    ]
    assert story.after(FindingsReported((wrong,))) == []
    assert story.after(FindingsReported(())) == [
        ("INFO", "device_finding_over meter=g7 signal=xid_1")
    ]


def test_a_fenced_worker_and_who_stands_in_for_it_are_told(caplog):
    caplog.set_level(logging.INFO)
    ward = Ward()
    chronicle = Chronicle(ward.life)
    ward.up()
    ward.report(finding("g2", "fence"), finding("g3", "fence"))
    caplog.clear()
    chronicle.look(now_s=0.0)
    lines = [line for line in caplog.messages if not line.startswith("process_ready")]
    assert [line.split()[0] for line in lines] == [
        *["device_finding"] * 2,
        *("worker_role", "worker_stands_in", "worker_fenced", "worker_draining"),
        *("worker_fenced", "worker_draining", "node_degraded"),
    ]
    assert "name=prefill-0" in lines[3]
    ward.cleared()
    caplog.clear()
    chronicle.look(now_s=0.0)
    assert "worker_released name=decode-0" in caplog.messages


def test_a_late_word_of_a_fenced_process_is_no_change(story):
    assert story.after(ProcessReady(story.node.generation("decode-0"))) == []
