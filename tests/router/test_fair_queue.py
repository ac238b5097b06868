"""Claims about whose turn it is, within a listener and between listeners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.perf_model.request_cost import RequestCost
from nodeserve.router.admission import MAX_OVERTAKEN, MAX_SKIPPED
from nodeserve.router.fair_queue import FairQueue
from nodeserve.router.messages import ListenerChanged, RequestArrived
from nodeserve.router.request_flow import RequestFlow

COST = RequestCost(prompt_token_s=1.0, output_token_s=10.0)


class Queue(FairQueue):
    """A queue whose requests all start, one by one, until the test says stop."""

    def __init__(self, *listeners: ListenerChanged) -> None:
        super().__init__(COST)
        self.flows: dict[RequestId, RequestFlow] = {}
        self.started: list[str] = []
        for settings in listeners:
            self.change_listener(settings)

    def add(self, name: str, listener: str = "", *, priority: int = 0, prompt: int = 90, out=1):
        request = RequestArrived(RequestId(name), prompt, out, priority=priority, listener=listener)
        flow = self.flows[request.request_id] = RequestFlow(request, len(self.flows) + 1)
        self.tenant_of(flow).num_flows += 1
        return self.push(flow, now_s=0.0)

    def start(self, number: int, fits=lambda _: True) -> list[str]:
        """Return the next ``number`` that start, in order."""
        begun: list[str] = []

        def try_start(request_id, _):
            if len(begun) == number or not fits(request_id):
                return False
            begun.append(request_id)
            self.charge(self.flows[request_id], self.flows[request_id].request.prompt_tokens)
            return True

        self.walk(try_start)
        self.check()
        return begun

    def end(self, name: str, output_tokens: int) -> None:
        flow = self.flows.pop(RequestId(name))
        self.tenant_of(flow).num_flows -= 1
        self.settle(flow, output_tokens)

    def gpu_s(self) -> dict[str, float]:
        return {tenant.name: tenant.gpu_s for tenant in self.snapshots()}


def flood(queue: Queue, listener: str, number: int, **more) -> None:
    for one in range(number):
        queue.add(f"{listener}{one}", listener, **more)


# --------------------------------------------------------------------- one listener


def test_within_a_listener_it_goes_by_priority_then_arrival():
    queue = Queue()
    assert queue.add("b") == 0
    assert queue.add("c") == 1
    assert queue.add("urgent", priority=-1) == 0
    assert queue.request_ids() == ["urgent", "b", "c"]
    assert queue.start(9) == ["urgent", "b", "c"]
    assert len(queue) == 0


def test_all_who_fit_start_and_the_rest_keep_their_order():
    queue = Queue()
    flood(queue, "", 6)
    offered = []

    def try_start(request_id, num_passed):
        offered.append((request_id, num_passed))
        return int(request_id) % 2 == 0

    queue.walk(try_start)
    assert offered == [("0", 0), ("1", 0), ("2", 1), ("3", 1), ("4", 2), ("5", 2)]
    assert queue.request_ids() == ["1", "3", "5"]
    assert "0" not in queue
    assert "1" in queue


def test_a_walk_looks_past_only_a_few_of_each_listener():
    queue = Queue()
    flood(queue, "a", 20)
    flood(queue, "b", 20)
    offered: list[str] = []

    def refuse(request_id, _):
        offered.append(request_id)
        return False

    queue.walk(refuse)
    assert sorted(offered) == sorted(
        f"{listener}{one}" for listener in "ab" for one in range(MAX_SKIPPED + 1)
    )
    assert len(queue) == 40


@pytest.mark.parametrize("others", ["", "other"])
def test_whoever_was_passed_too_often_blocks_all_behind_it_until_it_fits(others):
    queue = Queue()
    queue.add("big", "")
    for number in range(1, MAX_OVERTAKEN + 10):
        queue.add(f"small{number}", others)
        queue.start(1, fits=lambda name: name != "big")
    assert len(queue) == 10
    assert queue.start(99)[0] == "big"
    assert len(queue) == 0


def test_discarding_takes_out_one_and_ignores_strangers():
    queue = Queue()
    flood(queue, "", 2)
    queue.discard(RequestId("0"))
    queue.discard(RequestId("0"))
    assert queue.request_ids() == ["1"]
    assert len(queue) == 1
    queue.check()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.integers(-1, 1)),
            st.tuples(st.just("discard"), st.integers(0, 10)),
            st.tuples(st.just("walk"), st.sets(st.integers(0, 30))),
        ),
        max_size=30,
    )
)
def test_a_queue_is_always_sorted_and_loses_nobody(steps):
    queue, waiting, arrivals = Queue(), {}, 0
    for step, value in steps:
        if step == "push":
            arrivals += 1
            queue.add(str(arrivals), priority=value)
            waiting[str(arrivals)] = (value, arrivals)
        elif step == "discard":
            queue.discard(RequestId(str(value)))
            waiting.pop(str(value), None)
        else:
            for request_id in queue.start(99, fits=lambda name, fits=value: int(name) in fits):
                del waiting[request_id]
        assert queue.request_ids() == sorted(waiting, key=waiting.__getitem__)
        assert len(queue) == len(waiting)


# ---------------------------------------------------------------- between listeners


def test_a_request_of_another_listener_passes_a_flood():
    queue = Queue()
    flood(queue, "batch", 1000)
    assert queue.start(3) == ["batch0", "batch1", "batch2"]
    queue.add("chat0", "chat")
    assert queue.start(2) == ["chat0", "batch3"]


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75)])
def test_floods_share_gpu_time_by_weight_whatever_their_requests_cost(weight, share):
    queue = Queue(ListenerChanged("a", weight=weight))
    flood(queue, "a", 1000, prompt=1000)
    flood(queue, "b", 1000, prompt=90)
    for _ in range(600):
        queue.start(1)
    used = queue.gpu_s()
    assert used["a"] / sum(used.values()) == pytest.approx(share, abs=0.01)


def test_output_costs_more_than_prompt_and_counts_when_it_is_known():
    queue = Queue()
    flood(queue, "a", 500, out=10_000)
    flood(queue, "b", 500, out=10_000)
    for _ in range(400):
        for name in queue.start(1):
            queue.end(name, output_tokens=900 if name.startswith("a") else 100)
    used = queue.gpu_s()
    assert used["a"] / used["b"] == pytest.approx(1.0, abs=0.1)
    answers = {name: used[name] / (90 + 10 * out) for name, out in (("a", 900), ("b", 100))}
    assert answers["b"] / answers["a"] == pytest.approx(900 / 100, rel=0.2)


def test_what_was_guessed_too_high_is_given_back_to_the_second():
    queue = Queue()
    queue.add("x", "a", prompt=90, out=1000)
    queue.start(1)
    assert queue.gpu_s() == {"a": 90 + 10 * 256}
    queue.end("x", output_tokens=3)
    assert queue.gpu_s() == {"a": 90 + 10 * 3}


def test_idleness_is_no_credit():
    queue = Queue()
    flood(queue, "busy", 200)
    for _ in range(100):
        queue.start(1)
    flood(queue, "late", 50)
    begun = [queue.start(1)[0] for _ in range(40)]
    assert sum(name.startswith("late") for name in begun) == pytest.approx(20, abs=1)


def test_bands_are_strict():
    queue = Queue(ListenerChanged("batch", priority=1), ListenerChanged("chat", priority=0))
    flood(queue, "batch", 5)
    flood(queue, "chat", 5, prompt=10_000)
    assert queue.start(7) == [*(f"chat{n}" for n in range(5)), "batch0", "batch1"]


def test_a_request_never_passes_those_of_its_listener_by_another_ones_priority():
    queue = Queue()
    flood(queue, "batch", 3, priority=-100)
    flood(queue, "chat", 1)
    assert set(queue.start(2)) == {"batch0", "chat0"}


def test_a_listener_at_its_limit_is_passed_by_everybody_and_blocks_nobody():
    queue = Queue(ListenerChanged("batch", max_running=2))
    flood(queue, "batch", 5)
    assert queue.start(9) == ["batch0", "batch1"]
    for number in range(MAX_OVERTAKEN + 5):
        queue.add(f"chat{number}", "chat")
        assert queue.start(9) == [f"chat{number}"]
    queue.end("batch0", 1)
    assert queue.start(9) == ["batch2"]
    assert [(t.name, t.running, t.queued) for t in queue.snapshots()] == [
        ("batch", 2, 2),
        ("chat", MAX_OVERTAKEN + 5, 0),
    ]


def test_who_starts_again_goes_first_and_is_not_charged_twice():
    queue = Queue()
    queue.add("a0", "a")
    queue.start(1)
    charged = queue.gpu_s()["a"]
    queue.add("b0", "b")
    queue.push(queue.flows[RequestId("a0")], now_s=9.0)
    assert queue.start(2) == ["a0", "b0"]
    assert queue.gpu_s()["a"] == charged


def test_who_waits_too_long_is_taken_out_at_its_deadline_and_not_before():
    queue = Queue(ListenerChanged("a", queue_timeout_s=5.0), ListenerChanged("b"))
    queue.add("a0", "a")
    queue.add("b0", "b")
    assert queue.next_deadline_s() == 5.0
    assert queue.expire(now_s=4.9) == []
    ((request_id, tenant),) = queue.expire(now_s=5.0)
    assert (request_id, tenant.expired) == ("a0", 1)
    assert queue.request_ids() == ["b0"]
    assert queue.next_deadline_s() is None
    queue.check()


def test_who_has_started_before_has_no_deadline_any_more():
    queue = Queue(ListenerChanged("a", queue_timeout_s=5.0))
    queue.add("a0", "a")
    queue.start(1)
    queue.push(queue.flows[RequestId("a0")], now_s=1.0)
    assert queue.next_deadline_s() is None


def test_a_listener_that_changes_its_band_begins_where_that_band_is():
    queue = Queue(ListenerChanged("a"), ListenerChanged("b", priority=1))
    flood(queue, "a", 100)
    flood(queue, "b", 10)
    for _ in range(50):
        queue.start(1)
    queue.change_listener(ListenerChanged("b"))
    begun = [queue.start(1)[0] for _ in range(10)]
    assert sum(name.startswith("b") for name in begun) == pytest.approx(5, abs=1)


def test_a_request_that_is_in_no_line_is_noticed():
    queue = Queue()
    flood(queue, "", 2)
    queue._tenants[""].line.pop()
    with pytest.raises(InvariantError, match="report this bug"):
        queue.check()
    queue._tenants[""].discard(RequestId("0"))
    queue._tenants[""]._orders.clear()
    queue._tenants[""].since_s.clear()
    with pytest.raises(InvariantError, match="0 requests stand in line and 2 are known"):
        queue.check()
