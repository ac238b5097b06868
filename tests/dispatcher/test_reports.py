from nodeserve.dispatcher.reports import Reports
from nodeserve.wire.control import (
    DispatcherReady,
    GatewayGivenUp,
    NodeDrained,
    WorkerDrained,
    WorkerServing,
)


class Heard(list):
    def send(self, message):
        self.append(message)


def test_everything_that_holds_is_said_again_and_nothing_that_has_ended():
    heard = Heard()
    reports = Reports(heard)
    ready = DispatcherReady(generation=2, pid=7)
    gone = [WorkerServing(generation=3), WorkerDrained(generation=3)]
    holds = [WorkerServing(generation=4), GatewayGivenUp(generation=5, reason="x"), NodeDrained()]
    for message in [ready, *gone, *holds]:
        reports.send(message)
    assert heard == [ready, *gone, *holds]
    heard.clear()
    reports.forget(3)
    reports.say_again()
    assert heard == [ready, *holds]
