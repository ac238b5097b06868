import pytest

from nodeserve.engine.simulated.calls import Answer, answer
from nodeserve.engine.simulated.wire import UtilityCall


@pytest.fixture
def call(bench):
    def answered(method, *args):
        return answer(UtilityCall(0, 1, method, list(args)), bench.scheduler, bench.now_s)

    return answered


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("get_supported_tasks", ["generate"]),
        ("is_sleeping", False),
        ("reset_prefix_cache", True),
        ("list_loras", []),
        ("reset_mm_cache", None),
    ],
)
def test_what_front_ends_ask_is_answered(call, method, value):
    assert call(method) == Answer(value)


def test_unknown_method_is_answered_with_a_failure(call):
    assert call("add_lora", {}) == Answer(failure="the simulated engine has no method add_lora")


def test_prefix_cache_of_a_busy_engine_is_not_reset(call, bench):
    bench.add("a", [1, 2, 3, 4, 5], max_tokens=9)
    bench.step()
    assert call("reset_prefix_cache") == Answer(value=False)


def test_release_unpins_and_stats_tell(call, bench):
    leg = {"kv_transfer_params": {"do_remote_decode": True}}
    bench.run("p", [1, 2, 3], max_tokens=1, extra_args=leg)
    assert call("nodeserve_kv_stats").value["leased"] == 1
    assert call("nodeserve_release", [1]) == Answer()
    assert call("nodeserve_kv_stats").value["leased"] == 0


@pytest.mark.parametrize("args", [[], ["x"], [[99]], [[0]], [1, 2]])
def test_odd_release_is_a_failure_not_a_crash(call, args):
    assert call("nodeserve_release", *args).failure
