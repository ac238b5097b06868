import pytest

from nodeserve.config import paths
from nodeserve.config.facts import Topology
from nodeserve.config.layout import Wish
from nodeserve.config.load import Flags, Surroundings, load_config, simulated_topology
from nodeserve.config.node import GatewayKind
from nodeserve.errors import ConfigError
from tests.config.conftest import node_of, write_model


def refusal(load, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_a_model_alone_is_a_whole_configuration(load, model):
    config = load()
    assert config.model == str(model)
    assert config.served_model_names == ("tiny-llama", str(model))
    assert [worker.name for worker in config.workers] == ["prefill-0", "decode-0"]
    assert [worker.cpus for worker in config.workers] == [(0,), (1,)]
    [listener] = config.listeners
    assert listener.socket == "/run/ns/api.sock"
    assert listener.gateway is GatewayKind.PYTHON
    assert config.runtime_dir == "/run/ns/api.sock.d"
    assert config.warnings == ()


def test_flags_win_over_the_file(load):
    toml = """
    model = "/nowhere"
    served_model_name = "old"
    [[listener]]
    socket = "/run/a.sock"
    gateway = "python"
    """
    config = load(toml, served_model_name=("new",), socket="/run/b.sock", gateway=GatewayKind.RUST)
    assert config.served_model_names == ("new",)
    assert config.listeners[0].socket == "/run/b.sock"
    assert config.listeners[0].gateway is GatewayKind.RUST
    assert config.runtime_dir == "/run/b.sock.d"


def test_arguments_add_up_from_role_to_command_line(load):
    toml = """
    [engine]
    args = {max_model_len = 1000, dtype = "float32", block_size = 16}
    [[workers]]
    role = "prefill"
    args = {max_model_len = 2000, block_size = 32}
    [[workers]]
    role = "decode"
    """
    config = load(toml, node_of(2, 2), vllm_args=("--block-size", "64"))
    prefill, decode = config.workers
    assert prefill.args == {
        "max_num_batched_tokens": 16_384,
        "max_model_len": 2000,
        "dtype": "float32",
        "block_size": 64,
    }
    assert decode.args == {"max_model_len": 1000, "dtype": "float32", "block_size": 64}


def test_gpus_of_this_machine_do_both_until_kv_in_their_memory_can_be_handed_over(load):
    workers = load(node=node_of(4, 2)).workers
    assert [(worker.name, worker.gpu_uuids) for worker in workers] == [
        (f"aggregated-{n}", (f"GPU-{n}",)) for n in range(4)
    ]


def test_front_end_arguments_after_the_dashes_reach_every_listener(load):
    config = load(
        listen="127.0.0.1:8000",
        vllm_args=("--tool-call-parser", "hermes", "--max-model-len", "4k"),
    )
    assert [listener.args for listener in config.listeners] == [
        {"tool_call_parser": "hermes"},
        {"tool_call_parser": "hermes"},
    ]
    assert config.workers[0].args == {"max_model_len": 4000}


def test_every_problem_is_named_at_once_with_file_key_and_nearest_name(load, tmp_path):
    toml = """
    modle = "x"
    [[workers]]
    role = "prefil"
    [[workers]]
    role = "decode"
    gpus = [9]
    args = {enforce_eagr = true}
    [kv]
    lease_ttl_s = true
    """
    text = refusal(load, toml, node_of(8, 2), vllm_args=("--host", "x"))
    file = tmp_path / "config.toml"
    hint = "(did you mean `enforce_eager`?)"
    owned = "is set by nodeserve: see [[listener]], `--socket` and `--listen`"
    assert text.splitlines() == [
        f"{file}: modle is not a setting (did you mean `model`?)",
        f"{file}: workers[0].role is 'prefil': expected prefill or decode or aggregated",
        f"{file}: kv.lease_ttl_s is true: expected a number, got true or false",
        f"{file}: workers[1].args.enforce_eagr is not an argument of vLLM {hint}",
        f"{file}: workers[1].gpus[0] is 9, this node has GPUs 0 to 7",
        f"command line: --host {owned}",
    ]


def test_a_simulated_node_asks_nothing_of_the_machine(model):
    def forbidden() -> Topology:
        raise AssertionError

    around = Surroundings(
        environ={},
        uid=0,
        topology=forbidden,
        memory=forbidden,
        simulated_gpus=("h100-sxm",),
    )
    flags = Flags(model=str(model), simulate="8xh100-sxm", speedup=float("inf"))
    config = load_config(flags, around)
    assert [worker.name for worker in config.workers] == [
        *(f"prefill-{n}" for n in range(4)),
        *(f"decode-{n}" for n in range(4)),
    ]
    assert all(worker.gpu_uuids == worker.cpus == () for worker in config.workers)
    assert config.listeners[0].gateway is GatewayKind.RUST
    assert config.speedup == float("inf")


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"simulate": "8xh100-smx"}, "did you mean `h100-sxm`"),
        ({"simulate": "h100-sxm"}, "such as 8xh100-sxm"),
        ({"simulate": "0xh100-sxm"}, "such as 8xh100-sxm"),
        ({"simulate": "2xh100-sxm", "wish": Wish(decode=3)}, "need 3 GPUs, this node has 2 GPUs"),
        ({"simulate": "2xh100-sxm", "speedup": 0.0}, "command line: --speedup is 0: use"),
        (
            {"simulate": "2xh100-sxm", "speedup": float("nan")},
            "command line: --speedup is nan: use",
        ),
        ({"speedup": 2.0}, "--speedup is given without --simulate"),
        ({"api_key_file": "/k"}, "--api-key-file is given without --listen"),
        ({"wish": Wish(prefill=-1)}, "--prefill is -1"),
        ({"wish": Wish(tp_decode=0)}, "--tp-decode is 0"),
        ({"wish": Wish(prefill=2, decode=0)}, "nobody would generate"),
        ({"wish": Wish(prefill=0)}, "are none"),
        ({"model": "/nowhere"}, "model /nowhere: no such directory"),
        ({"model": None}, "MODEL is missing"),
        ({"vllm_args": ("--speculative-config", "{}")}, "speculative decoding"),
        ({"vllm_args": ("--enable-lora",)}, "LoRA"),
        ({"socket": "/run/" + "x" * 120}, "bytes long"),
        ({"served_model_name": ("a", "")}, "--served-model-name is empty"),
        ({"listen": "127.0.0.1:99999"}, "command line: --listen is '127.0.0.1:99999': ports are"),
        ({"listen": "0.0.0.0:80"}, "set `--api-key-file`, or listen on 127.0.0.1"),
        (
            {"listen": "127.0.0.1:80", "api_key_file": "/nowhere"},
            "--api-key-file cannot be used: API key file /nowhere: cannot be read: No such file",
        ),
    ],
)
def test_flags_that_can_never_work_are_refused(load, flags, what):
    assert what in refusal(load, **flags)


@pytest.mark.parametrize(
    ("toml", "what"),
    [
        ("model = ", "is not TOML"),
        ("[kv]\nlease_ttl_s = 0.5", "kv.lease_ttl_s is 0.5: use 1 or more"),
        ("[router]\nmax_queued_requests = 0", "router.max_queued_requests is 0"),
        ("[drain]\ndeadline_s = -1.0", "drain.deadline_s is -1.0"),
        ("[drain]\ndeadline_s = inf", "drain.deadline_s is inf"),
        ("served_model_name = ''", "served_model_name is empty"),
        ("runtime_dir = '/run/" + "y" * 100 + "'", "internal socket paths end at 107 bytes"),
        ("[simulate]\nspeedup = 2.0", "simulate.system is missing"),
        ("workers = 3", "workers is 3: expected a list, got an integer"),
        ("[simulate]\nsystem = '1xh100-sxm'\nspeedup = 0.0", "simulate.speedup is 0: use"),
        ("[[listener]]\nmode = 660", "mode is 660: expected a string, got an integer: put it in"),
    ],
)
def test_a_file_that_can_never_work_is_refused(load, toml, what):
    assert what in refusal(load, toml)


def test_a_socket_path_that_is_too_long_is_one_problem_of_its_flag(load):
    [line] = refusal(load, socket="/run/" + "x" * 120).splitlines()
    assert line.startswith("command line: --socket is /run/xxx")


def test_a_socket_path_is_told_its_true_limit_at_once(load):
    """The internal sockets lie beside it, and have longer names."""
    fits = "/run/" + "x" * (paths.MAX_OWN_SOCKET_BYTES - 5)
    assert load(socket=fits).runtime_dir == f"{fits}.d"
    for more in (1, 40):
        [line] = refusal(load, socket=fits + "x" * more).splitlines()
        assert line.startswith("command line: --socket is /run/xxx")
        assert f"leave {paths.MAX_OWN_SOCKET_BYTES}: choose a shorter one" in line


def test_a_socket_path_may_be_longer_where_the_internals_are_elsewhere(load):
    long = "/run/" + "x" * 102
    assert load("runtime_dir = '/run/d'", socket=long).listeners[0].socket == long
    assert "at most 107: choose" in refusal(load, "runtime_dir = '/run/d'", socket=f"{long}x")


@pytest.mark.parametrize("wish", [Wish(prefill=-1), Wish(tp_prefill=0, decode=1)])
def test_a_count_that_cannot_be_is_one_problem(load, wish):
    assert len(refusal(load, wish=wish).splitlines()) == 1


@pytest.mark.parametrize(("prefill", "decode"), [(1, 2), (2, 1), (2, 2)])
def test_workers_of_any_tensor_parallel_sizes_hand_over(load, prefill, decode):
    wish = Wish(prefill=1, decode=1, tp_prefill=prefill, tp_decode=decode)
    assert load(simulate="8xh100-sxm", wish=wish).warnings == ()


def workers_with(prefill, decode):
    return f"""
        [[workers]]
        role = "prefill"
        args = {{ {prefill} }}
        [[workers]]
        role = "decode"
        args = {{ {decode} }}
    """


@pytest.mark.parametrize(
    ("prefill", "decode", "text"),
    [
        ("block_size = 48", "block_size = 32", "is 32 and 48: let one divide the other"),
        ("", 'kv_cache_dtype = "fp8"', "`kv_cache_dtype` of prefill and decode workers is auto"),
        ('dtype = "float32"', 'dtype = "bfloat16"', "is bfloat16 and float32"),
    ],
)
def test_workers_between_which_nothing_could_be_handed_over_are_refused(
    load, prefill, decode, text
):
    assert text in refusal(load, workers_with(prefill, decode), simulate="8xh100-sxm")


def test_block_sizes_may_divide_one_another(load):
    config = load(workers_with("block_size = 16", "block_size = 64"), simulate="8xh100-sxm")
    assert (config.kv.one_tp, config.kv.one_block_size) == (True, False)


def test_workers_are_told_whether_they_are_of_one_size(load):
    wish = Wish(prefill=1, decode=1, tp_prefill=1, tp_decode=2)
    kv = load(simulate="8xh100-sxm", wish=wish).kv
    assert (kv.one_tp, kv.one_block_size) == (False, True)


def test_a_file_that_is_not_there_is_named(load):
    assert refusal(load, config="/nowhere.toml").startswith("/nowhere.toml: cannot be read")


def test_flags_and_tables_of_workers_are_not_mixed(load):
    text = refusal(load, '[[workers]]\nrole = "decode"', wish=Wish(decode=1))
    assert "use one of them" in text


def test_a_driver_that_hangs_is_a_problem_and_not_a_node_without_gpus(load):
    node = Topology(cpus=node_of(0, 2).cpus, gpu_problem="no answer within 20 s")
    assert "GPUs cannot be listed: no answer within 20 s" in refusal(load, node=node)


def test_a_multimodal_model_serves_its_text_part_only_when_asked(load, tmp_path):
    model = write_model(tmp_path / "sees", vision_config={})
    assert "--language-model-only" in refusal(load, model=str(model))
    assert load(model=str(model), vllm_args=("--language-model-only",)).model == str(model)


def test_a_node_with_tcp_only_is_still_found_by_the_default_socket(load):
    config = load('[[listener]]\nlisten = "127.0.0.1:8000"')
    assert config.listeners[0].address == "127.0.0.1:8000"
    assert config.runtime_dir == "/run/ns/api.sock.d"


def test_a_socket_flag_beside_a_tcp_listener_adds_a_listener(load):
    config = load('[[listener]]\nlisten = "127.0.0.1:8000"', socket="/run/x.sock")
    assert [listener.address for listener in config.listeners] == ["/run/x.sock", "127.0.0.1:8000"]


def test_a_simulated_system_has_two_numa_nodes():
    assert [gpu.numa_node for gpu in simulated_topology("4xh100-sxm").gpus] == [0, 0, 1, 1]
