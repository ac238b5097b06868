import json
import os
import resource
import socket as sockets

import pytest

from nodeserve.cli import checks
from nodeserve.cli.checks import Verdict
from nodeserve.config.facts import Cpu, Gpu, Topology
from tests.cli.conftest import a_status

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
ENDLESS = resource.RLIM_INFINITY


def gpu(index: int) -> Gpu:
    return Gpu(index=index, uuid=f"GPU-{index}", name="H100", memory_bytes=80 << 30, numa_node=0)


@pytest.mark.parametrize(
    ("python", "vllm", "expected"),
    [
        ((3, 11, 0), "0.32.0", {"python": OK, "vllm": OK}),
        ((3, 10, 9), "0.31.0", {"python": FAIL, "vllm": FAIL}),
        ((3, 13, 1), None, {"python": OK, "vllm": WARN}),
    ],
)
def test_versions_are_judged(python, vllm, expected):
    found = {c.name: c for c in checks.check_versions(python, vllm, "0.32.0", {"PATH": ""})}
    assert {name: found[name].verdict for name in expected} == expected
    assert all((check.verdict is OK) == (check.advice == "") for check in found.values())


@pytest.mark.parametrize(
    ("topology", "verdicts"),
    [
        (Topology(), [OK]),
        (Topology(gpu_problem="hung"), [FAIL]),
        (Topology(gpus=(gpu(0),), driver_version="600", peer_gaps=()), [OK, OK]),
        (Topology(gpus=(gpu(0), gpu(1)), driver_version="600", peer_gaps=()), [OK, OK, OK, OK]),
        (Topology(gpus=(gpu(0), gpu(1)), peer_gaps=((0, 1),)), [OK, OK, OK, WARN]),
        (Topology(gpus=(gpu(0), gpu(1)), peer_gaps=None), [OK, OK, OK, WARN]),
    ],
)
def test_gpus_are_judged(topology, verdicts):
    assert [check.verdict for check in checks.check_gpus(topology)] == verdicts


def test_gpus_that_do_not_see_each_other_are_named():
    topology = Topology(gpus=(gpu(0), gpu(1)), peer_gaps=((0, 1),))
    assert "between 0-1" in list(checks.check_gpus(topology))[-1].found


@pytest.mark.parametrize(("num_cpus", "verdict"), [(1, WARN), (2, OK)])
def test_cpus_are_judged(num_cpus, verdict):
    cpus = tuple(Cpu(index=n, core=n) for n in range(num_cpus))
    assert checks.check_cpus(Topology(cpus=cpus)).verdict is verdict


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [
        ((ENDLESS, ENDLESS), OK),
        ((65_536, 65_536), OK),
        ((1_024, 524_288), WARN),
        ((1_024, ENDLESS), WARN),
        ((8_192, 8_192), WARN),
        ((1_024, 2_048), FAIL),
    ],
)
def test_open_files_are_judged(limit, verdict):
    assert checks.check_files(limit).verdict is verdict


@pytest.mark.parametrize(
    ("limit", "has_gpus", "verdict"),
    [((ENDLESS, ENDLESS), True, OK), ((65_536, 65_536), True, WARN), ((65_536, 65_536), False, OK)],
)
def test_locked_memory_matters_with_gpus(limit, has_gpus, verdict):
    assert checks.check_locked_memory(limit, has_gpus=has_gpus).verdict is verdict


def test_shared_memory_that_is_not_there_is_a_warning(tmp_path):
    assert checks.check_shared_memory(tmp_path / "none").verdict is WARN


def test_processes_of_one_user_share_memory_here():
    assert checks.check_peer_memory().verdict is OK


def test_a_socket_that_fits_can_be_made(tmp_path):
    [check] = checks.check_socket(tmp_path / "new" / "api.sock")
    assert check.verdict is OK


def test_a_socket_that_is_too_long_fails(tmp_path):
    [check] = checks.check_socket(tmp_path / ("x" * 120))
    assert check.verdict is FAIL


def test_a_node_that_runs_there_is_named_with_its_state(daemon):
    daemon.answers = [a_status()]
    with sockets.socket(sockets.AF_UNIX) as api:
        api.bind(str(daemon.socket))
        [check] = checks.check_socket(daemon.socket)
        assert (check.verdict, "a node is ready there, pid None, serving tiny" in check.found) == (
            OK,
            True,
        )
        daemon.answers = [a_status(state="degraded", detail="no worker decodes")]
        [check] = checks.check_socket(daemon.socket)
        assert (check.verdict, check.found.endswith("; no worker decodes")) == (WARN, True)


def test_a_node_whose_socket_is_gone_fails(daemon):
    daemon.answers = [a_status()]
    [check] = checks.check_socket(daemon.socket)
    assert (check.verdict, "is gone" in check.found) == (FAIL, True)


def test_what_else_is_there_is_told_apart(tmp_path):
    path = tmp_path / "api.sock"
    with sockets.socket(sockets.AF_UNIX) as other:
        other.bind(str(path))
        [dead] = checks.check_socket(path)
        other.listen()
        [live] = checks.check_socket(path)
    path.unlink()
    path.write_text("precious")
    [file] = checks.check_socket(path)
    assert [dead.verdict, live.verdict, file.verdict] == [OK, FAIL, FAIL]
    assert "left by a dead process" in dead.found
    assert "no node of ours" in live.found
    assert "is no socket" in file.found


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_socket_in_a_closed_directory_fails(tmp_path):
    tmp_path.chmod(0o500)
    [check] = checks.check_socket(tmp_path / "api.sock")
    tmp_path.chmod(0o700)
    assert check.verdict is FAIL


def model(tmp_path, **keys):
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], **keys})
    )
    return str(tmp_path)


def test_a_model_with_weights_is_ok(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    assert checks.check_model(model(tmp_path), {}).verdict is OK


def test_a_model_without_weights_can_only_be_simulated(tmp_path):
    check = checks.check_model(model(tmp_path), {})
    assert (check.verdict, "--simulate" in check.advice) == (WARN, True)


@pytest.mark.parametrize("path", ["none", "."])
def test_what_cannot_be_served_fails(tmp_path, path):
    model(tmp_path, vision_config={})
    assert checks.check_model(str(tmp_path / path), {}).verdict is FAIL
