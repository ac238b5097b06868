import importlib.resources

import pytest

from nodeserve.perf_model.profile import parse_profiles
from nodeserve.perf_model.request_cost import TYPICAL, RequestCost

KNOTS = importlib.resources.files("nodeserve.perf_model").joinpath("data/step_time_knots.csv")
PROFILES = parse_profiles(KNOTS.read_text("utf-8"), "measured")


@pytest.mark.parametrize("key", PROFILES)
def test_an_output_token_costs_several_prompt_tokens_on_all_that_was_measured(key):
    cost = RequestCost.of(PROFILES[key], key.tp)
    assert 3 < cost.output_token_s / cost.prompt_token_s < 8


def test_what_stands_for_the_unknown_lies_among_what_is_known():
    known = [RequestCost.of(profile, key.tp) for key, profile in PROFILES.items()]
    for name in ("prompt_token_s", "output_token_s"):
        values = [getattr(cost, name) for cost in known]
        assert min(values) < getattr(TYPICAL, name) < max(values)


def test_all_gpus_of_a_group_count():
    (profile, *_) = PROFILES.values()
    one, two = RequestCost.of(profile, 1), RequestCost.of(profile, 2)
    assert two.output_token_s == pytest.approx(2 * one.output_token_s)
