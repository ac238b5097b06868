"""A worker whose heart beats and whose step never ends is replaced; its streams go on."""

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import SIMULATED
from tests.e2e.streams import PROMPTS, Stream
from tests.support.daemon import daemon

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


@pytest.fixture
def trigger(tmp_path, monkeypatch):
    """The file that makes one engine hang, once it is there."""
    file = tmp_path / "hang"
    inject = Path(__file__).parent / "hang"
    paths = [str(inject), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("NODESERVE_TEST_HANG", str(file))
    return file


def test_streams_of_a_worker_in_an_endless_step_go_on_elsewhere(tiny_model, tmp_path, trigger):
    config = tmp_path / "node.toml"
    config.write_text("[liveness]\nstep_s = 1\nfirst_step_s = 1\n")
    words = (str(tiny_model), "--config", str(config), *SIMULATED, "--speedup", "0.1")
    with daemon(tmp_path, *words) as node:
        node.wait_ready()
        asked = {"temperature": 0, "max_tokens": 40}
        calm = [Stream(node, node.model, prompt, **asked) for prompt in PROMPTS]
        expected = [stream.end()[:2] for stream in calm]
        streams = [Stream(node, node.model, prompt, **asked) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_for(5)
        trigger.touch()
        node.wait_for_line("has work and has not finished a step")
        assert [stream.end()[:2] for stream in streams] == expected
        node.wait_until(lambda status: status.state == "ready")
