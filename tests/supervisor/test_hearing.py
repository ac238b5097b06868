import pytest

from nodeserve.ids import Generation
from nodeserve.lifecycle.messages import (
    NodeEmptied,
    ProcessReady,
    ProcessSick,
    WorkerEmptied,
    WorkerRouted,
)
from nodeserve.supervisor.hearing import event_of, may_say
from nodeserve.wire import control


@pytest.mark.parametrize(
    ("identity", "message", "allowed"),
    [
        (b"2", control.WorkerServing(generation=5), True),
        (b"5", control.WorkerServing(generation=5), False),
        (b"5", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), True),
        (b"6", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), False),
        (b"c1", control.WorkerHeartbeat(generation=5, steps=1, num_requests=0), False),
        (b"c1", control.ReloadRequest(), True),
        (b"5", control.ReloadRequest(), False),
    ],
)
def test_a_child_speaks_for_itself_and_the_dispatcher_for_routing(identity, message, allowed):
    assert may_say(identity, message, dispatcher=2) is allowed


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (control.DispatcherReady(generation=2, pid=1), ProcessReady(Generation(2))),
        (control.WorkerServing(generation=5), WorkerRouted(Generation(5))),
        (control.WorkerDrained(generation=5), WorkerEmptied(Generation(5))),
        (control.NodeDrained(), NodeEmptied()),
        (
            control.GatewayGivenUp(generation=7, reason="it does not read"),
            ProcessSick(Generation(7), "given up by the dispatcher: it does not read"),
        ),
        (control.StatusRequest(), None),
    ],
)
def test_what_is_heard_becomes_an_event_of_the_node(message, event):
    assert event_of(message) == event
