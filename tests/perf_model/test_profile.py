import importlib.resources

import pytest

from nodeserve.errors import ConfigError
from nodeserve.perf_model.profile import Profile, ProfileKey, parse_profiles

SHIPPED = importlib.resources.files("nodeserve.perf_model").joinpath("data/step_time_knots.csv")

COLUMNS = (
    "model,gpu,tp,g1,g256,pair_ns,context_token_ns,prefill_scale,decode_scale,overhead_ms,"
    "kv_bytes_per_token,weight_bytes"
)


def profile(tokens=(1, 8, 16), ms=(10.0, 17.0, 33.0)):
    return Profile("p", "s", tokens, ms, 1.0, 1.0, 1.0, 1.0, 1.0, 1, 1)


@pytest.mark.parametrize(
    ("tokens", "ms"), [(1, 10.0), (8, 17.0), (2, 11.0), (12, 25.0), (16, 33.0), (24, 49.0)]
)
def test_linear_part_is_straight_between_knots_and_goes_on_beyond_the_last(tokens, ms):
    assert profile().linear_ms(tokens) == pytest.approx(ms)


@pytest.mark.parametrize(("tokens", "ms"), [((1,), (1.0,)), ((1, 2), (1.0,)), ((2, 1), (1.0, 2.0))])
def test_knots_that_no_line_goes_through_are_refused(tokens, ms):
    with pytest.raises(ConfigError, match="at least two ascending knots"):
        profile(tokens, ms)


def test_comments_are_skipped_and_columns_go_by_name():
    text = f"# from somewhere\n{COLUMNS}\nm,h100-sxm,2,3.5,20,0.5,9,1.2,0.9,0.6,40000,65\n"
    ((key, parsed),) = parse_profiles(text, "somewhere").items()
    assert key == ProfileKey("m", "h100-sxm", 2)
    assert (parsed.knot_tokens, parsed.knot_ms) == ((1, 256), (3.5, 20.0))
    assert (parsed.pair_ns, parsed.context_token_ns) == (0.5, 9.0)
    assert (parsed.prefill_scale, parsed.decode_scale, parsed.overhead_ms) == (1.2, 0.9, 0.6)
    assert (parsed.kv_bytes_per_token, parsed.weight_bytes) == (40000, 65)
    assert parsed.source == "somewhere"


@pytest.mark.parametrize("row", ["m,h100-sxm,2,3.5", "m,h100-sxm,x,1,2,3,4,5,6,7,8,9"])
def test_garbled_row_is_refused(row):
    with pytest.raises(ConfigError, match="step-time data"):
        parse_profiles(f"{COLUMNS}\n{row}\n", "s")


def test_shipped_data_has_two_models_on_two_gpus_at_four_sizes():
    keys = set(parse_profiles(SHIPPED.read_text("utf-8"), "shipped"))
    models, gpus = ("llama70b-fp8", "gptoss120b-mxfp4"), ("h100-sxm", "h200-sxm")
    assert keys == {
        ProfileKey(model, gpu, tp) for model in models for gpu in gpus for tp in (1, 2, 4, 8)
    }


def test_shipped_data_names_its_origin_and_licence():
    text = SHIPPED.read_text("utf-8")
    assert "derived from AIConfigurator 0.12" in text
    assert "Apache-2.0" in text
