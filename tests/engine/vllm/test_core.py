"""vLLM's engine core under our roof."""

import pytest

from tests.engine.vllm.conftest import ASYNC, SHORT

pytestmark = pytest.mark.vllm


def test_the_engine_names_the_fields_of_what_it_receives_and_sends(node) -> None:
    fields = node.ready[ASYNC].fields
    assert {"request_id", "prompt_token_ids", "sampling_params", "client_index"} <= {
        *fields.request
    }
    assert {"engine_index", "outputs", "scheduler_stats", "utility_output"} <= {*fields.outputs}
    assert {"request_id", "new_token_ids", "finish_reason", "kv_transfer_params"} <= {
        *fields.output
    }


def test_an_idle_engine_has_nothing_to_do(node) -> None:
    assert node.whole(ASYNC, [7, 8, 9], 2).finish is not None
    node.call(ASYNC, "get_supported_tasks")  # one round trip: the last step is over
    assert not node.call(ASYNC, "has_work")


def test_an_unknown_utility_fails_the_call_and_not_the_engine(node) -> None:
    with pytest.raises(AssertionError, match="nodeserve_nothing"):
        node.call(ASYNC, "nodeserve_nothing")
    assert node.stats(ASYNC)["leased"] == 0


def test_an_idle_engine_ends_a_lease_whose_holder_never_comes(node) -> None:
    handoff = node.prefill(SHORT, [number % 200 for number in range(100)])
    assert handoff["lease_id"] > 0
    node.until_free(SHORT)
    assert node.stats(SHORT)["leased"] == 0
