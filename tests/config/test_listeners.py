import pytest

from nodeserve.config.listeners import ListenerDefaults, resolve_listeners
from nodeserve.config.node import GatewayKind
from nodeserve.config.problems import Problems
from nodeserve.config.schema import ListenerTable
from nodeserve.wire.spawn import TenantSpec

DEFAULTS = ListenerDefaults(socket="/run/ns/api.sock", gateway=GatewayKind.PYTHON)


def resolved(*tables, problems=None, defaults=DEFAULTS):
    mine = problems or Problems("config.toml")
    keyed = [(f"listener[{index}]", table) for index, table in enumerate(tables)]
    listeners = resolve_listeners(keyed, defaults, mine)
    assert problems is not None or mine.errors == []
    return listeners


def errors(*tables):
    problems = Problems("config.toml")
    resolved(*tables, problems=problems)
    return problems.errors


def test_an_empty_table_is_the_default_listener():
    [listener] = resolved(ListenerTable())
    assert (listener.name, listener.address, listener.mode) == ("api", "/run/ns/api.sock", 0o660)


def test_each_listener_chooses_its_gateway_unless_the_command_line_does():
    tables = (
        ListenerTable(gateway=GatewayKind.RUST),
        ListenerTable(socket="/run/b.sock"),
    )
    assert [listener.gateway.value for listener in resolved(*tables)] == ["rust", "python"]
    forced = ListenerDefaults(
        socket="/s", gateway=GatewayKind.PYTHON, forced_gateway=GatewayKind.RUST
    )
    assert {listener.gateway.value for listener in resolved(*tables, defaults=forced)} == {"rust"}


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("[::1]:80", "::1", 80),
        ("localhost:1", "localhost", 1),
    ],
)
def test_loopback_addresses_need_no_keys(listen, host, port):
    [listener] = resolved(ListenerTable(listen=listen))
    assert (listener.host, listener.port, listener.address) == (host, port, listen)


@pytest.mark.parametrize(
    "listen", ["8000", ":8000", "host:", "host:0", "host:-1", "::1:80", "host:8o"]
)
def test_other_addresses_are_refused_with_an_example(listen):
    [error] = errors(ListenerTable(listen=listen))
    assert "write HOST:PORT, such as 127.0.0.1:8000" in error


def test_a_port_that_cannot_be_is_named():
    [error] = errors(ListenerTable(listen="127.0.0.1:65536"))
    assert error.endswith("is '127.0.0.1:65536': ports are 1 to 65535, 65536 is none")


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "gpu-box:80"])
def test_an_address_that_others_reach_needs_keys(listen, tmp_path):
    [error] = errors(ListenerTable(listen=listen))
    assert "other machines can reach: set `api_key_file`" in error
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    [listener] = resolved(ListenerTable(listen=listen, api_key_file=str(keys)))
    assert listener.api_key_file == str(keys)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("600", 0o600), ("0o666", 0o666)])
def test_permission_bits_are_octal(text, mode):
    assert resolved(ListenerTable(mode=text))[0].mode == mode


@pytest.mark.parametrize(
    ("table", "what"),
    [
        (ListenerTable(mode="888"), 'such as "0660"'),
        (ListenerTable(mode="rw"), 'such as "0660"'),
        (ListenerTable(group="no-such-group"), "a group that this machine does not have"),
        (ListenerTable(name="My Listener"), "use a-z, 0-9 and -"),
        (ListenerTable(gateways=0), "gateways is 0, expected 1 to 64"),
        (ListenerTable(gateways=2, gateway=GatewayKind.RUST), "a rust gateway is always one"),
        (ListenerTable(socket="/run/" + "x" * 120), "bytes long"),
        (ListenerTable(socket="/s", listen="127.0.0.1:1"), "sets both `socket` and `listen`"),
        (ListenerTable(api_key_file="/nowhere"), "api_key_file cannot be used"),
        (ListenerTable(priority=101), "priority is 101: use -100 to 100"),
        (ListenerTable(weight=0.0), "weight is 0: use a number above 0"),
        (ListenerTable(weight=float("inf")), "weight is inf: use a number above 0"),
        (ListenerTable(weight=float("nan")), "weight is nan: use a number above 0"),
        (ListenerTable(max_running_requests=0), "max_running_requests is 0: use 1 or more"),
        (ListenerTable(max_queued_requests=-1), "max_queued_requests is -1: use 0 or more"),
        (ListenerTable(queue_timeout_s=0.0), "queue_timeout_s is 0: use a number above 0"),
        (ListenerTable(args={"max_model_len": 10}), "set it in [engine].args"),
        (ListenerTable(args={"uds": "/x"}), "args.uds is set by nodeserve"),
        (ListenerTable(args={"chat_templat": "x"}), "did you mean `chat_template`?"),
    ],
)
def test_what_cannot_work_is_refused_by_key(table, what):
    [error] = errors(table)
    assert error.startswith("config.toml: listener[0]")
    assert what in error


def test_what_a_listener_may_take_is_its_own():
    batch = ListenerTable(
        priority=1, weight=0.5, max_running_requests=8, max_queued_requests=0, queue_timeout_s=9.0
    )
    other = ListenerTable(socket="/run/b.sock", queue_timeout_s=float("inf"))
    assert [listener.tenant for listener in resolved(batch, other)] == [
        TenantSpec(
            priority=1,
            weight=0.5,
            max_running_requests=8,
            max_queued_requests=0,
            queue_timeout_s=9.0,
        ),
        TenantSpec(queue_timeout_s=float("inf")),
    ]


def test_two_listeners_share_neither_name_nor_address():
    found = errors(
        ListenerTable(name="a", socket="/run/a.sock"), ListenerTable(name="a", socket="/run/a.sock")
    )
    assert ["name" in found[0], "address" in found[1], len(found)] == [True, True, 2]


def test_keys_that_everybody_can_read_are_warned_of(tmp_path):
    path = tmp_path / "keys"
    path.write_text("k")
    path.chmod(0o644)
    problems = Problems("config.toml")
    resolved(ListenerTable(api_key_file=str(path)), problems=problems)
    assert "is open to every user" in problems.warnings[0]


def test_a_credential_is_kept_by_name_and_read_where_the_manager_put_it(tmp_path):
    given = ListenerTable(listen="0.0.0.0:8000", api_key_file="credential:apikeys")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    service = ListenerDefaults(socket="/s", gateway=GatewayKind.RUST, environ=environ)
    problems = Problems("config.toml")
    resolved(given, problems=problems, defaults=service)
    assert "cannot be used: API key file" in problems.errors[0]
    (tmp_path / "apikeys").write_text("k1\n")
    [listener] = resolved(given, defaults=service)
    assert listener.api_key_file == "credential:apikeys"


def test_a_credential_can_be_checked_without_the_manager_and_says_so():
    problems = Problems("config.toml")
    [listener] = resolved(ListenerTable(api_key_file="credential:apikeys"), problems=problems)
    assert listener.api_key_file == "credential:apikeys"
    assert problems.errors == []
    assert "only when systemd starts nodeserve" in problems.warnings[0]
