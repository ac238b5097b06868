import pytest

from nodeserve.errors import InvariantError
from nodeserve.ids import RequestId
from nodeserve.router.messages import ListenerChanged, RequestArrived
from nodeserve.router.request_flow import RequestFlow
from nodeserve.router.tenant import FIRST_GUESS_TOKENS, Band, Tenant, TenantSnapshot


def flow(name, arrival, *, priority=0, paid_s=None):
    made = RequestFlow(RequestArrived(RequestId(name), 1, 1, priority=priority), arrival)
    made.paid_s = paid_s
    return made


@pytest.fixture
def tenant():
    made = Tenant(ListenerChanged("chat", weight=2.0, queue_timeout_s=10.0), Band())
    yield made
    made.num_flows = len(made.line)
    made.check()


def line(tenant):
    return [waiting.request_id for waiting in tenant.line]


def test_who_started_before_waits_in_front_for_nothing(tenant):
    tenant.push(flow("new", 1), 3.0, now_s=0.0)
    assert tenant.push(flow("urgent", 2, priority=-1), 3.0, now_s=0.0) == 0
    assert tenant.push(flow("again", 3, paid_s=1.0), 3.0, now_s=0.0) == 0
    assert line(tenant) == ["again", "urgent", "new"]
    assert [waiting.cost_s for waiting in tenant.line] == [0.0, 3.0, 3.0]


def test_its_first_deadline_is_that_of_who_waits_longest(tenant):
    assert tenant.deadline_s is None
    tenant.push(flow("late", 2, priority=-1), 1.0, now_s=1.0)
    tenant.push(flow("later", 3), 1.0, now_s=2.0)
    assert tenant.deadline_s == 11.0
    tenant.discard(RequestId("late"))
    assert tenant.deadline_s == 12.0
    assert RequestId("late") not in tenant


def test_idleness_is_no_credit_and_waiting_is(tenant):
    tenant.band.virtual_s = 7.0
    tenant.catch_up()
    assert tenant.virtual_s == 7.0
    tenant.push(flow("a", 1), 1.0, now_s=0.0)
    tenant.band.virtual_s = 9.0
    tenant.catch_up()
    assert tenant.virtual_s == 7.0


def test_weight_divides_virtual_time_and_not_what_is_accounted(tenant):
    tenant.charge(6.0)
    tenant.charge(-2.0)
    assert (tenant.gpu_s, tenant.virtual_s) == (4.0, 2.0)


def test_the_guess_follows_real_lengths_slowly(tenant):
    tenant.learn(4096)
    assert FIRST_GUESS_TOKENS < tenant.guess_tokens < 1000
    for _ in range(200):
        tenant.learn(16)
    assert tenant.guess_tokens == pytest.approx(16, abs=1)


def test_a_limit_counts_who_runs_and_not_who_waits():
    tenant = Tenant(ListenerChanged("batch", max_running=1), Band())
    tenant.num_flows = 1
    tenant.push(flow("a", 1), 1.0, now_s=0.0)
    assert tenant.may_start
    tenant.discard(RequestId("a"))
    assert not tenant.may_start
    assert tenant.snapshot() == TenantSnapshot("batch", 1, 0, refused=0, expired=0, gpu_s=0.0)


@pytest.mark.parametrize("damage", ["_orders", "since_s"])
def test_tables_that_disagree_are_noticed(damage):
    tenant = Tenant(ListenerChanged("chat"), Band())
    tenant.num_flows = 1
    tenant.push(flow("a", 1), 1.0, now_s=0.0)
    tenant.check()
    getattr(tenant, damage).clear()
    with pytest.raises(InvariantError, match="listener chat"):
        tenant.check()
