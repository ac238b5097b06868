"""Claims about what is noticed of a router that commands what it must not."""

from types import SimpleNamespace

import pytest

from nodeserve.ids import Generation, LeaseId, LegId, RequestId
from nodeserve.router.messages import (
    AbortLeg,
    Command,
    FailRequest,
    LegKind,
    ReleaseLease,
    ReportDrained,
    RequestArrived,
    StartLeg,
    TimeElapsed,
    WorkerAttached,
    WorkerDraining,
)
from nodeserve.router.router import Router, RouterConfig
from nodeserve.sim.node import SimNode
from nodeserve.sim.story import RuleBrokenError
from nodeserve.sim.watch import RouterWatch
from nodeserve.wire.kinds import Role
from tests.sim.plans import PAIR

WORKER, REQUEST = Generation(3), RequestId("d2-1")
LEG = StartLeg(REQUEST, LegId("d2-1.1"), WORKER, LegKind.WHOLE)
DECODE = StartLeg(REQUEST, LegId("d2-1.1"), WORKER, LegKind.DECODE, LeaseId(7))


class Puppet:
    """A router that commands what the test says, whatever it hears."""

    def __init__(self) -> None:
        self.router = Router(RouterConfig())
        self.says: list[Command] = []
        vars(self.router)["handle"] = lambda event, now_s: self.says
        self.watch = RouterWatch(SimNode(PAIR), SimpleNamespace(), self.router)

    def hear(self, event, *says: Command) -> None:
        self.says = list(says)
        self.router.handle(event, now_s=1.0)


@pytest.fixture
def puppet() -> Puppet:
    made = Puppet()
    made.hear(RequestArrived(REQUEST, 10, 10, listener="gateway-0"))
    made.hear(WorkerAttached(WORKER, Role.DECODE, 10, 4, 4))
    return made


@pytest.mark.parametrize(
    ("command", "rule"),
    [
        (StartLeg(REQUEST, LegId("d2-1.1"), Generation(9), LegKind.WHOLE), "on live workers"),
        (DECODE, "a handoff is there when it is pulled"),
        (ReleaseLease(WORKER, LeaseId(7)), "a lease is released once"),
        (AbortLeg(LegId("d2-1.1"), WORKER), "a leg is aborted once"),
        (FailRequest(REQUEST, "it died while answering"), "a failure has a cause"),
        (FailRequest(REQUEST, "3 workers died under it"), "a failure has a cause"),
        (FailRequest(REQUEST, "0 requests wait already"), "a failure has a cause"),
        (FailRequest(REQUEST, "the node is shutting down"), "a failure has a cause"),
        (FailRequest(REQUEST, "longer than listener x"), "a failure has a cause"),
    ],
)
def test_commands_without_ground_are_noticed(puppet: Puppet, command: Command, rule: str) -> None:
    with pytest.raises(RuleBrokenError, match=rule):
        puppet.hear(TimeElapsed(), command)


def test_a_request_that_runs_twice_is_noticed(puppet: Puppet) -> None:
    puppet.hear(TimeElapsed(), LEG)
    with pytest.raises(RuleBrokenError, match="a request runs once"):
        puppet.hear(TimeElapsed(), LEG)


def test_a_drained_worker_that_holds_a_leg_is_noticed(puppet: Puppet) -> None:
    puppet.hear(TimeElapsed(), LEG)
    with pytest.raises(RuleBrokenError, match="a drained worker holds nothing"):
        puppet.hear(TimeElapsed(), ReportDrained(WORKER))


def test_a_leg_on_a_draining_worker_is_noticed(puppet: Puppet) -> None:
    puppet.hear(WorkerDraining(WORKER))
    with pytest.raises(RuleBrokenError, match="draining workers get nothing"):
        puppet.hear(TimeElapsed(), LEG)


def test_who_could_have_been_started_before_is_noticed(puppet: Puppet) -> None:
    with pytest.raises(RuleBrokenError, match="nobody waits beside room"):
        puppet.hear(WorkerAttached(Generation(4), Role.DECODE, 10, 4, 4), LEG)


def test_what_is_left_in_the_end_is_noticed() -> None:
    puppet = Puppet()
    puppet.watch.check_end()
    puppet.watch.handoffs.add((WORKER, 7))
    with pytest.raises(RuleBrokenError, match="nothing is left"):
        puppet.watch.check_end()
