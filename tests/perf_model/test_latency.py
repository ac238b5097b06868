import importlib.resources

import pytest

from nodeserve.errors import ConfigError
from nodeserve.perf_model.latency import Link, StepWork, step_s
from nodeserve.perf_model.profile import Profile, ProfileKey, parse_profiles

SHIPPED = importlib.resources.files("nodeserve.perf_model").joinpath("data/step_time_knots.csv")


@pytest.fixture(scope="module")
def profiles():
    return parse_profiles(SHIPPED.read_text("utf-8"), "shipped")


@pytest.fixture
def llama(profiles):
    return profiles[ProfileKey("llama70b-fp8", "h100-sxm", 2)]


def test_empty_step_takes_no_time(llama):
    assert step_s(llama, StepWork()) == 0


def test_equation_by_hand():
    profile = Profile("p", "s", (1, 256, 512), (10.0, 20.0, 50.0), 2.0, 100.0, 1.5, 0.5, 1.0, 1, 1)
    work = StepWork(prefill_tokens=500, prefill_pairs=1e6, decoding=12, context_tokens=30_000)
    decode_ms = 0.5 * (20 + 100e-6 * 30_000)
    prefill_ms = 1.5 * (50 - 20 + 2e-6 * 1e6)
    assert step_s(profile, work) * 1e3 == pytest.approx(1.0 + decode_ms + prefill_ms)


def test_pure_decode_grows_with_batch_and_context(llama):
    one = step_s(llama, StepWork(decoding=1, context_tokens=1000))
    more_requests = step_s(llama, StepWork(decoding=64, context_tokens=1000))
    more_context = step_s(llama, StepWork(decoding=64, context_tokens=64_000))
    assert one < more_requests < more_context


def test_two_chunks_cost_more_than_one_prefill_and_see_the_same_pairs(llama):
    whole = StepWork(prefill_tokens=2048, prefill_pairs=2048 * 1024)
    first = StepWork(prefill_tokens=1024, prefill_pairs=1024 * 512)
    second = StepWork(prefill_tokens=1024, prefill_pairs=1024 * (1024 + 512))
    assert first.prefill_pairs + second.prefill_pairs == whole.prefill_pairs
    assert step_s(llama, first) + step_s(llama, second) > step_s(llama, whole)


@pytest.mark.parametrize(
    ("key", "tpot_ms"),
    [
        # InferenceX (SemiAnalysisAI/InferenceX, Apache-2.0): vLLM, 8 requests at a time of
        # 1024 + 1024 tokens, median time per output token.
        (ProfileKey("llama70b-fp8", "h100-sxm", 4), 12.11),
        (ProfileKey("llama70b-fp8", "h100-sxm", 8), 9.356),
        (ProfileKey("llama70b-fp8", "h200-sxm", 4), 10.136),
        (ProfileKey("gptoss120b-mxfp4", "h100-sxm", 4), 4.73),
        (ProfileKey("gptoss120b-mxfp4", "h200-sxm", 2), 5.954),
    ],
)
def test_decode_step_is_near_published_time_per_token(profiles, key, tpot_ms):
    work = StepWork(decoding=8, context_tokens=8 * (1024 + 512))
    assert step_s(profiles[key], work) * 1e3 == pytest.approx(tpot_ms, rel=0.08)


def test_transfer_is_setup_plus_bytes_over_bandwidth():
    assert Link(setup_s=0.02, bytes_per_s=1e9).transfer_s(500_000_000) == pytest.approx(0.52)


def test_nothing_to_transfer_takes_no_time():
    assert Link(setup_s=0.02, bytes_per_s=1e9).transfer_s(0) == 0


@pytest.mark.parametrize(("setup_s", "bytes_per_s"), [(0.0, 0.0), (-1.0, 1.0)])
def test_impossible_link_is_refused(setup_s, bytes_per_s):
    with pytest.raises(ConfigError, match="impossible"):
        Link(setup_s, bytes_per_s)
