"""How vllm-rs is found, told and run."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from nodeserve.config.node import ArgValue, GatewayKind, Listener
from nodeserve.errors import ConfigError
from nodeserve.gateway import launch, rust_server
from nodeserve.gateway.probe import probe_unix
from nodeserve.ids import Generation
from nodeserve.wire.spawn import EngineSpec
from tests.gateway.one_step_engine import OneStepEngine
from tests.gateway.weightless_model import write_model


def binary_is_here() -> bool:
    try:
        rust_server.find_binary(os.environ)
    except ConfigError:
        return False
    return True


needs_binary = pytest.mark.skipif(not binary_is_here(), reason="vllm-rs is not installed")


def test_front_end_arguments_pass_and_the_engines_own_are_left_out() -> None:
    args: dict[str, ArgValue] = {
        "max_model_len": 2048,
        "block_size": 32,
        "tool_call_parser": "hermes",
        "dtype": None,
    }

    passed = rust_server.settings("main", "/m", args)

    assert passed["tool_call_parser"] == "hermes"
    assert not passed.keys() & args.keys() - {"tool_call_parser"}


def test_cached_prompt_tokens_are_shown_and_parsers_are_chosen_by_model_unless_told() -> None:
    assert rust_server.settings("main", "/m", {}) == {
        "enable_prompt_tokens_details": True,
        "reasoning_parser": "auto",
        "tool_call_parser": "auto",
    }


def test_an_argument_it_cannot_honour_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"listener chat: .*response_role.*--gateway python"):
        rust_server.settings("chat", "/m", {"response_role": "bot"})


def test_a_flag_that_is_off_is_no_demand() -> None:
    assert "return_tokens_as_token_ids" not in rust_server.settings(
        "main", "/m", {"return_tokens_as_token_ids": False}
    )


def test_the_models_own_tokenizer_is_no_demand() -> None:
    assert "tokenizer" not in rust_server.settings("main", "/m", {"tokenizer": "/m"})


def test_no_argument_is_both_understood_and_refused() -> None:
    assert not rust_server.UNDERSTOOD & rust_server.UNSUPPORTED


def test_the_key_is_in_the_environment_and_the_daemons_own_key_is_not() -> None:
    env = rust_server.environment(
        {"VLLM_API_KEY": "daemon's", "PATH": "/bin"}, listener="main", api_keys=("secret",)
    )

    assert env["VLLM_API_KEY"] == "secret"
    assert env["PATH"] == "/bin"


def test_without_keys_no_key_is_inherited() -> None:
    env = rust_server.environment({"VLLM_API_KEY": "daemon's"}, listener="main", api_keys=())

    assert "VLLM_API_KEY" not in env


def test_two_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match="one API key, 2 given"):
        rust_server.environment({}, listener="main", api_keys=("a", "b"))


def test_the_binary_on_the_path_is_found(tmp_path: Path) -> None:
    program = tmp_path / rust_server.BINARY_NAME
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o700)

    found = rust_server.find_binary({"PATH": str(tmp_path)})

    assert found == program or found.parent.name == "vllm"


@contextmanager
def gateway(
    tmp_path: Path, api_keys: tuple[str, ...] = ()
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """Run vllm-rs in front of a fake engine; yields a client once it answers."""
    runtime = tmp_path / "rt"
    runtime.mkdir(mode=0o700)
    path = tmp_path / "api.sock"
    inside = launch.internal_sockets(runtime, Generation(3))
    with ExitStack() as stack:
        fds = []
        for place in (path, inside.input_path, inside.output_path):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(place))
            listener.listen()
            fds.append(listener.fileno())
        model = str(write_model(tmp_path / "model"))
        described = launch.rust_gateway(
            launch.GatewayLaunch(
                listener=Listener(name="main", socket=str(path), gateway=GatewayKind.RUST),
                generation=Generation(3),
                runtime_dir=runtime,
                engine=EngineSpec(model=model, served_model_name="tiny", tp=1, args={}),
                served_model_names=("tiny", "alias"),
                api_keys=api_keys,
                http_fd=fds[0],
                drain_s=60.0,
            ),
            input_fd=fds[1],
            output_fd=fds[2],
            environ=os.environ,
        )
        process = subprocess.Popen(
            described.argv, env=dict(described.env), pass_fds=described.pass_fds
        )
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        stack.enter_context(OneStepEngine(inside))
        assert asyncio.run(_wait_until_serving(path, process))
        transport = httpx.HTTPTransport(uds=str(path))
        yield (
            stack.enter_context(httpx.Client(transport=transport, base_url="http://node")),
            process,
        )


async def _wait_until_serving(path: Path, process: subprocess.Popen[bytes]) -> bool:
    async with asyncio.timeout(30):
        while process.poll() is None:
            if (await probe_unix(str(path), deadline_s=1.0)).serving:
                return True
            await asyncio.sleep(0.02)
    return False


@needs_binary
def test_it_serves_the_engine_behind_the_two_sockets_under_all_its_names(tmp_path: Path) -> None:
    with gateway(tmp_path) as (client, _):
        models = client.get("/v1/models").json()["data"]
        request = {"model": "alias", "prompt": "hello", "max_tokens": 4}
        answer = client.post("/v1/completions", json=request)

    assert [model["id"] for model in models] == ["tiny", "alias"]
    assert models[0]["max_model_len"] == 512
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 4


@needs_binary
def test_it_asks_for_the_key_and_its_arguments_do_not_show_it(tmp_path: Path) -> None:
    with gateway(tmp_path, ("s3cret",)) as (client, process):
        refused = client.get("/v1/models")
        taken = client.get("/v1/models", headers={"authorization": "Bearer s3cret"})
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()

    assert (refused.status_code, taken.status_code) == (401, 200)
    assert b"s3cret" not in shown


@needs_binary
def test_sigterm_ends_it_with_status_0(tmp_path: Path) -> None:
    with gateway(tmp_path) as (_, process):
        process.terminate()
        assert process.wait(10) == 0


@needs_binary
def test_the_binary_refuses_none_of_the_arguments_we_pass_and_all_we_refuse() -> None:
    binary = rust_server.find_binary(os.environ)
    known = json.dumps(dict.fromkeys(rust_server.UNSUPPORTED, "x") | {"model_tag": "/none"})
    argv = rust_server.command(binary, http_fd=0, input_fd=0, output_fd=0, arguments={})
    ended = subprocess.run(
        [*argv[:-1], known], capture_output=True, text=True, timeout=30, check=False
    )
    refused = {line[2:] for line in ended.stderr.splitlines() if line.startswith("- ")}

    assert not refused & rust_server.UNDERSTOOD
    assert rust_server.UNSUPPORTED - refused == IGNORED_WITHOUT_A_WORD


IGNORED_WITHOUT_A_WORD = {
    "custom_histogram_buckets",
    "enable_server_load_tracking",
    "enable_tokenizer_info_endpoint",
}
