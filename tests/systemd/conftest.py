"""One machine for all tests of the service; each begins with an idle socket and no service."""

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.gateway.weightless_model import write_model
from tests.systemd.machine import NODESERVE, SOCKET, CannotBootError, Machine

SIMULATED: Final = f"""\
model = "/srv/models/tiny"
socket = "{SOCKET}"
[simulate]
system = "2xh100-sxm"
"""

DROP_IN: Final = "/run/systemd/system/nodeserve.service.d/50-tests.conf"


class Service:
    """The installed service on its machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def reset(self) -> None:
        """Go back to a socket that waits, the default configuration and the installed units."""
        run = self.machine.run
        run("systemctl stop nodeserve-tcp.socket nodeserve.socket nodeserve.service", check=False)
        run(f"rm -f {DROP_IN} && systemctl daemon-reload")
        run("systemctl reset-failed 'nodeserve*'", check=False)
        run("truncate --size 0 /etc/nodeserve/apikeys")
        self.configure("")
        run("systemctl start nodeserve.socket")

    def configure(self, more: str) -> None:
        """Write the configuration: simulated workers, and these tables."""
        self.machine.write("/etc/nodeserve/node.toml", SIMULATED + more)

    def hurry(self, text: str) -> None:
        """Lay a drop-in over the unit: shorter times, never anything else."""
        self.machine.write(DROP_IN, text)
        self.machine.run("systemctl daemon-reload")

    def ask(self, max_tokens: int = 2, **more: Any) -> httpx.Response:
        """Ask for one completion through a connection of its own."""
        body = {"model": "tiny", "prompt": "hello", "max_tokens": max_tokens, "ignore_eos": True}
        with self.machine.client() as client:
            return client.post("/v1/completions", json=body, **more)

    def serve(self) -> int:
        """Have the service serve; return the supervisor's pid."""
        answer = self.ask()
        assert answer.status_code == 200, answer.text
        pid = self.machine.main_pid()
        assert pid > 0
        return pid

    def pids(self) -> set[int]:
        """Return the pids of all processes of the service, as the kernel counts them."""
        group = "/sys/fs/cgroup/system.slice/nodeserve.service"
        said = self.machine.run(
            f"find {group} -name cgroup.procs -exec cat {{}} + 2>/dev/null", check=False
        )
        return {int(word) for word in said.split()}


@pytest.fixture(scope="session")
def machine(tmp_path_factory) -> Iterator[Machine]:
    models = tmp_path_factory.mktemp("models")
    write_model(models / "tiny")
    models.chmod(0o755)
    try:
        booted = Machine(models)
    except CannotBootError as error:
        pytest.skip(f"no systemd can be booted here: {error}")
    try:
        yield booted
    finally:
        booted.close()


@pytest.fixture(scope="session")
def installed(machine: Machine) -> str:
    """What `nodeserve install` printed on the machine."""
    machine.run("useradd --system member")
    said = machine.run(f"{NODESERVE} install")
    machine.run("usermod --append --groups nodeserve-users member")
    return said


@pytest.fixture
def service(machine: Machine, installed: str) -> Service:
    made = Service(machine)
    made.reset()
    return made
