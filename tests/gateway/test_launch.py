"""What the supervisor is told to start for a listener."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nodeserve.config.node import GatewayKind, Listener
from nodeserve.errors import ConfigError
from nodeserve.gateway import launch, rust_server
from nodeserve.ids import Generation
from nodeserve.wire.spawn import EngineSpec, InflightLimitSpec, PythonGatewaySpec, TenantSpec


@pytest.fixture
def asked() -> launch.GatewayLaunch:
    return launch.GatewayLaunch(
        listener=Listener(name="main", socket="/run/x.sock", gateway=GatewayKind.PYTHON),
        generation=Generation(12),
        runtime_dir=Path("/run/x.d"),
        engine=EngineSpec(
            model="/m", served_model_name="m", tp=4, args={"max_model_len": 2048, "max_logprobs": 5}
        ),
        served_model_names=("m", "also-m"),
        api_keys=("k1", "k2"),
        http_fd=9,
        drain_s=60.0,
    )


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    program = tmp_path / rust_server.BINARY_NAME
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o700)
    return {"PATH": str(tmp_path)}


def bootstrap(gateway: launch.ExecGateway) -> dict[str, object]:
    return dict(json.loads(gateway.argv[gateway.argv.index("--args-json") + 1]))


def test_every_incarnation_meets_the_dispatcher_at_its_own_place() -> None:
    first = launch.internal_sockets(Path("/run/x.d"), Generation(1))
    second = launch.internal_sockets(Path("/run/x.d"), Generation(2))

    assert first.input_address == "ipc:///run/x.d/gw-1-in.sock"
    assert len({first.input_path, first.output_path, second.input_path, second.output_path}) == 4


def test_a_path_too_long_for_the_kernel_is_refused() -> None:
    inside = launch.internal_sockets(Path("/" + "x" * 120), Generation(1))

    with pytest.raises(ConfigError, match="107"):
        _ = inside.input_address


def test_the_python_gateway_is_forked_with_the_listening_socket(
    asked: launch.GatewayLaunch,
) -> None:
    gateway = launch.python_gateway(asked)

    assert gateway.fds == (9,)
    assert gateway.spec.input_address == "ipc:///run/x.d/gw-12-in.sock"
    assert gateway.spec.args[-3:] == ("--served-model-name", "m", "also-m")
    assert "--max-model-len" in gateway.spec.args


def test_the_python_gateways_spec_survives_its_fork(asked: launch.GatewayLaunch) -> None:
    spec = launch.python_gateway(asked).spec

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=PythonGatewaySpec) == spec


def test_keys_reach_the_python_gateway_by_environment_alone(asked: launch.GatewayLaunch) -> None:
    gateway = launch.python_gateway(asked)

    assert gateway.env["VLLM_API_KEY"] == "k1\nk2"
    assert "k1" not in repr(gateway.spec)


def test_without_keys_the_fork_servers_own_key_is_overwritten(
    asked: launch.GatewayLaunch,
) -> None:
    assert launch.python_gateway(replace(asked, api_keys=())).env["VLLM_API_KEY"] == ""


def test_keys_are_not_shown_in_what_is_logged(
    asked: launch.GatewayLaunch, environ: dict[str, str]
) -> None:
    rust = launch.rust_gateway(
        replace(asked, api_keys=("k1",)), input_fd=10, output_fd=11, environ=environ
    )

    assert "k1" not in repr(asked)
    assert "k1" not in repr(launch.python_gateway(asked))
    assert "k1" not in repr(rust)


def test_the_rust_gateway_adopts_three_sockets(
    asked: launch.GatewayLaunch, environ: dict[str, str]
) -> None:
    gateway = launch.rust_gateway(
        replace(asked, api_keys=()), input_fd=10, output_fd=11, environ=environ
    )

    assert gateway.pass_fds == (9, 10, 11)
    assert gateway.argv[1:8] == (
        "frontend",
        "--listen-fd",
        "9",
        "--input-listener-fd",
        "10",
        "--output-listener-fd",
        "11",
    )


def test_a_listeners_argument_wins_over_the_engines(
    asked: launch.GatewayLaunch, environ: dict[str, str]
) -> None:
    listener = Listener(
        name="main", socket="/s", gateway=GatewayKind.RUST, args={"max_logprobs": 20}
    )
    gateway = launch.rust_gateway(
        replace(asked, listener=listener, api_keys=()),
        input_fd=10,
        output_fd=11,
        environ=environ,
    )

    assert bootstrap(gateway)["max_logprobs"] == 20


def test_the_rust_gateway_is_told_all_the_models_names(
    asked: launch.GatewayLaunch, environ: dict[str, str]
) -> None:
    gateway = launch.rust_gateway(
        replace(asked, api_keys=()), input_fd=10, output_fd=11, environ=environ
    )

    told = bootstrap(gateway)
    assert told["served_model_name"] == ["m", "also-m"]
    assert told["model_tag"] == "/m"
    assert "max_model_len" not in told


@pytest.mark.parametrize(
    ("running", "queued", "most"),
    [(None, None, None), (8, None, None), (None, 8, None), (8, 2, 10)],
)
def test_a_listener_with_both_limits_has_one_on_what_is_in_flight(
    asked: launch.GatewayLaunch, running: int | None, queued: int | None, most: int | None
) -> None:
    tenant = TenantSpec(max_running_requests=running, max_queued_requests=queued)
    listener = msgspec.structs.replace(asked.listener, tenant=tenant, gateways=3)
    limit = launch.python_gateway(replace(asked, listener=listener, place=2)).spec.limit

    assert limit == (
        None
        if most is None
        else InflightLimitSpec(
            max_requests=most, counts_path="/run/x.d/main.counts", place=2, num_places=3
        )
    )
