"""The API server's arguments, as vLLM's own parser takes them.

That it serves, and ends on SIGTERM, is in tests/gateway/test_python_server.py.
"""

import pytest

from nodeserve.wire.spawn import EngineSpec, PythonGatewaySpec
from tests.support import vllm_entry

pytestmark = pytest.mark.vllm

REFUSED = {
    "an unknown option": (("--no-such-option", "1"), "gateway python: vLLM refuses its arguments"),
    "a value of a wrong type": (("--seed", "many"), "--seed"),
    "a tool parser nobody has": (
        ("--enable-auto-tool-choice", "--tool-call-parser", "nobody"),
        "invalid tool call parser: nobody",
    ),
    "tools without a parser": (("--enable-auto-tool-choice",), "listener api: "),
}


def spec(*args):
    return PythonGatewaySpec(
        name="api",
        generation=4,
        listen_address="/run/api.sock",
        input_address="ipc:///run/in",
        output_address="ipc:///run/out",
        engine=EngineSpec(model="/models/m", served_model_name="m", tp=1, args={}),
        args=args,
    )


@pytest.fixture(scope="module")
def outcomes(vllm_context):
    """What each command line comes to, all tried in one process that has vLLM."""
    ours, theirs = vllm_context.Pipe()
    specs = [*(spec(*words) for words, _ in REFUSED.values()), spec("--seed", "5")]
    process = vllm_context.Process(
        target=vllm_entry.parse_front_end, args=(specs, "key-1\nkey-2\n", theirs)
    )
    process.start()
    assert ours.poll(60)
    received = ours.recv()
    process.join(10)
    return received


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_vllm_refuses_are_a_setting_to_change(outcomes, case):
    text = outcomes[[*REFUSED].index(case)]
    assert REFUSED[case][1] in text
    assert "change" in text


def test_arguments_and_the_keys_of_the_environment_are_joined(outcomes):
    assert outcomes[-1] == {"model": "/models/m", "keys": ["key-1", "key-2"], "seed": 5}
