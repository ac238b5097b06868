"""The installed service under a real systemd: what an operator and the node's users meet."""

import threading

import pytest

from tests.systemd.conftest import Service
from tests.systemd.load import NUM_CLIENTS, ask, load
from tests.systemd.machine import NODESERVE, SOCKET

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]

CONNECT = (
    "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')"
)
CONTROL = f"{SOCKET}.d/control.sock"


def connect_as(service: Service, user: str, path: str) -> str:
    """Return the last line of a program that connects to ``path`` as ``user``."""
    become = f"setpriv --reuid={user} --regid=$(id -g {user}) --init-groups"
    said = service.machine.run(
        f'{become} /opt/python/bin/python3 -c "{CONNECT}" {path}', check=False
    )
    return said.splitlines()[-1]


# ------------------------------------------------------------------------------ starting


def test_the_first_request_starts_the_service_and_is_answered(service):
    assert service.machine.main_pid() == 0
    assert service.ask().status_code == 200
    shown = service.machine.show("ActiveState", "SubState", "StatusText")
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    service.machine.wait_until(StatusText="ready: 2 of 2 workers serve")


def test_when_the_start_is_over_commands_are_taken_though_engines_may_load(service):
    run = service.machine.run
    run("systemctl start nodeserve.service")
    assert service.machine.show("ActiveState")["ActiveState"] == "active"
    assert "tiny is " in run(f"{NODESERVE} status", check=False)
    assert service.ask().status_code == 200  # waits for the engines


def test_a_setting_that_can_never_work_is_not_tried_again(service):
    service.configure("[router]\nmax_queued_requests = 0\n")
    said = service.machine.run("systemctl start nodeserve.service", check=False)
    assert "control process exited" in said or "failed" in said
    shown = service.machine.show("ExecMainStatus", "NRestarts", "ActiveState")
    assert shown == {"ExecMainStatus": "78", "NRestarts": "0", "ActiveState": "failed"}
    assert "router.max_queued_requests is 0" in service.machine.journal()


# ------------------------------------------------------------------------ who may do what


def test_only_members_of_the_group_may_connect(service):
    service.serve()
    said = service.machine.run(f"stat -c '%a %U %G' {SOCKET}")
    assert said == "660 root nodeserve-users"
    assert connect_as(service, "member", SOCKET) == "connected"
    assert "Permission denied" in connect_as(service, "nobody", SOCKET)


def test_a_member_asks_the_node_without_saying_where_it_is(service):
    service.serve()
    member = "setpriv --reuid=member --regid=$(id -g member) --init-groups"
    assert service.machine.run(f"{member} {NODESERVE} complete --max-tokens 2 hello")
    said = service.machine.run(f"{member} {NODESERVE} status", check=False)
    assert "takes commands from its own user only" in said


def test_members_reach_neither_commands_nor_logs(service):
    service.serve()
    assert connect_as(service, "root", CONTROL) == "connected"
    assert "Permission denied" in connect_as(service, "member", CONTROL)
    assert service.machine.run(f"stat -c '%a %U' {SOCKET}.d") == "700 nodeserve"


def test_the_daemon_has_a_network_devices_and_shared_memory_of_its_own(service):
    pid = service.serve()
    run = service.machine.run
    assert run(f"readlink /proc/{pid}/ns/net") != run("readlink /proc/1/ns/net")
    status = run(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    inside = f"nsenter -t {pid} -m"
    assert run(f"{inside} ls -A /root /home") == "/home:\n\n/root:"
    assert run(f"{inside} findmnt -n -o FSTYPE /dev/shm") == "tmpfs"
    assert run(f"{inside} touch /usr/x", check=False).endswith("Read-only file system")


def test_each_process_has_a_control_group_of_its_own_below_the_service(service):
    service.serve()
    groups = service.machine.run("ls -d /sys/fs/cgroup/system.slice/nodeserve.service/*/")
    names = {line.rstrip("/").rpartition("/")[2].rstrip("0123456789") for line in groups.split()}
    assert {"supervisor", "dispatcher-", "decode-0-", "prefill-0-", "gateway-api-"} <= names


# ---------------------------------------------------------------------------------- keys


def test_keys_come_from_a_credential_whose_file_only_root_can_read(service):
    service.machine.run("echo nsk-tests > /etc/nodeserve/apikeys")
    service.configure(
        f'[[listener]]\nname = "api"\nsocket = "{SOCKET}"\napi_key_file = "credential:apikeys"\n'
    )
    assert service.ask().status_code == 401
    allowed = service.ask(headers={"Authorization": "Bearer nsk-tests"})
    assert allowed.status_code == 200, allowed.text
    assert service.machine.run("stat -c '%a %U' /etc/nodeserve/apikeys") == "600 root"
    assert "nsk-tests" not in service.machine.journal()


# ----------------------------------------------------------------------------------- TCP


TCP = '[[listener]]\nname = "tcp"\nlisten = "127.0.0.1:8000"\n'
UNIX = f'[[listener]]\nname = "api"\nsocket = "{SOCKET}"\n'
GET = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/v1/models').status)"


def test_tcp_is_served_through_a_socket_of_systemd_though_the_daemon_has_no_network(service):
    service.configure(UNIX + TCP)
    service.machine.run("systemctl start nodeserve-tcp.socket")
    assert service.machine.run(f'/opt/python/bin/python3 -c "{GET}"') == "200"
    service.machine.wait_until(StatusText="ready: 2 of 2 workers serve")
    assert service.ask().status_code == 200


def test_a_socket_that_no_listener_answers_on_is_refused_by_name(service):
    service.machine.run("systemctl start nodeserve-tcp.socket")
    service.machine.run("systemctl start nodeserve.service", check=False)
    assert service.machine.show("ExecMainStatus")["ExecMainStatus"] == "78"
    assert "FileDescriptorName=tcp, and no [[listener]] has this name" in service.machine.journal()


def test_a_second_listener_has_a_socket_unit_of_the_template(service):
    batch = "/run/nodeserve/batch.sock"
    service.configure(f'{UNIX}[[listener]]\nname = "batch"\nsocket = "{batch}"\n')
    service.machine.run("systemctl start nodeserve@batch.socket")
    try:
        assert ask(service.machine.path(batch), 2) == "200"
    finally:
        service.machine.run("systemctl stop nodeserve@batch.socket nodeserve.service")


# ------------------------------------------------------------------------------- ending


def test_a_restart_under_load_loses_nothing(service, record_property):
    service.serve()
    with load(service.machine.path(SOCKET)) as clients:
        service.machine.run("systemctl restart nodeserve.service")
        clients.wait_for(2 * NUM_CLIENTS)
    clients.record(record_property)
    assert not clients.lost


def test_reloads_under_load_lose_nothing_and_keep_every_process(service, record_property):
    pid = service.serve()
    service.machine.wait_until(StatusText="ready: 2 of 2 workers serve")
    before = service.pids()
    with load(service.machine.path(SOCKET)) as clients:
        for number in range(1, 4):
            service.machine.run("systemctl reload nodeserve.service")
            reloaded = f"supervisor_reloaded version=.* reloads={number}$"
            service.machine.run(
                f"until journalctl -o cat | grep -q '{reloaded}'; do sleep 0.1; done"
            )
            clients.wait_for(2 * NUM_CLIENTS)
    clients.record(record_property)
    assert not clients.lost
    assert service.pids() == before
    assert service.machine.main_pid() == pid
    service.machine.wait_until(StatusText="ready: 2 of 2 workers serve", ActiveState="active")


def test_a_reload_with_a_setting_that_cannot_work_leaves_the_service_as_it_is(service):
    service.serve()
    before = service.pids()
    service.configure("[router]\nmax_queued_requests = 0\n")
    service.machine.run("systemctl reload nodeserve.service")
    refused = "reload_refused .*router.max_queued_requests is 0"
    service.machine.run(f"until journalctl -o cat | grep -q '{refused}'; do sleep 0.1; done")
    service.machine.wait_until(ActiveState="active", SubState="running")
    assert service.ask().status_code == 200
    assert service.pids() == before


def test_a_stop_finishes_what_is_in_flight_however_short_the_managers_patience(service):
    """300 tokens take over two seconds; the manager would kill after one."""
    service.configure("speedup = 0.2\n")
    service.hurry("[Service]\nTimeoutStopSec=1\n")
    service.serve()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(service.ask(300)))
    asking.start()
    service.machine.run(f"until {NODESERVE} status | grep -q '1 running'; do sleep 0.05; done")
    service.machine.run("systemctl stop nodeserve.service")
    asking.join(60)
    assert answers[0].json()["usage"]["completion_tokens"] == 300
    assert service.machine.show("Result")["Result"] == "success"
    assert service.pids() == set()


def test_after_a_stop_the_next_request_starts_it_again(service):
    first = service.serve()
    service.machine.run("systemctl stop nodeserve.service")
    assert service.machine.main_pid() == 0
    assert service.serve() != first


# ------------------------------------------------------------------------------- faults


def test_a_killed_daemon_leaves_nobody_and_the_next_request_is_answered(service):
    pid = service.serve()
    before = service.pids()
    service.machine.run(f"kill -KILL {pid}")
    assert service.serve() != pid
    assert not before & service.pids()
    assert service.machine.run("ls -A /dev/shm") == ""


def test_a_kill_under_load_loses_only_what_was_in_flight(service, record_property):
    pid = service.serve()
    with load(service.machine.path(SOCKET)) as clients:
        service.machine.run(f"kill -KILL {pid}")
        clients.wait_for(2 * NUM_CLIENTS)
    clients.record(record_property)
    assert clients.lost.total() <= NUM_CLIENTS


@pytest.mark.parametrize("fault", ["SIGUSR2", "SIGSTOP"])
def test_a_supervisor_that_hangs_is_aborted_and_replaced(service, fault):
    """SIGUSR2 blocks the loop, by a handler that only this machine has."""
    service.hurry("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    pid = service.serve()
    before = service.pids()
    service.machine.run(f"kill -s {fault.removeprefix('SIG')} {pid}")
    service.machine.wait_until(NRestarts="1", ActiveState="active")
    assert service.serve() != pid
    assert not before & service.pids()
    journal = service.machine.journal()
    assert "Watchdog timeout" in journal
    assert "Failed with result 'watchdog'" in journal


def test_the_journal_shows_where_a_supervisor_hung(service):
    service.hurry("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    pid = service.serve()
    service.machine.run(f"kill -USR2 {pid}")
    service.machine.wait_until(NRestarts="1", ActiveState="active")
    said = service.machine.journal(f"_PID={pid}")
    assert "Fatal Python error: Aborted" in said
    assert "in block_the_loop" in said


def test_an_event_is_found_in_the_journal_by_its_fields(service):
    service.serve()
    found = "journalctl --no-pager -o cat NODESERVE_EVENT=worker_starting NODESERVE_NAME=decode-0"
    assert "worker_starting name=decode-0 phase=" in service.machine.run(found)
    assert "decode-0" in service.machine.journal("-p info SYSLOG_IDENTIFIER=nodeserve")


def test_a_supervisor_that_works_is_left_alone_by_its_watchdog(service):
    service.hurry("[Service]\nWatchdogSec=1\n")
    pid = service.serve()
    with load(service.machine.path(SOCKET)) as clients:
        service.machine.run("sleep 3")
    assert service.machine.main_pid() == pid
    assert not clients.lost


def test_a_crash_loop_ends_in_a_state_that_an_operator_sees_and_can_leave(service):
    """The last breaker takes the socket along, so that clients are refused at once."""
    run = service.machine.run
    if service.machine.version >= 254:
        service.hurry("[Service]\nRestartSteps=0\n")
    run("systemctl start nodeserve.service")
    for crash in range(5):  # StartLimitBurst=
        run(f"kill -KILL {service.machine.main_pid()}")
        if crash < 4:
            service.machine.wait_until(NRestarts=str(crash + 1), ActiveState="active")
    service.machine.wait_until(ActiveState="failed")
    service.machine.wait_until(unit="nodeserve.socket", ActiveState="failed")
    assert "Error" in ask(service.machine.path(SOCKET), 2)
    run("systemctl reset-failed nodeserve.service nodeserve.socket")
    run("systemctl start nodeserve.socket")
    assert service.ask().status_code == 200
