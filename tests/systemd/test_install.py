"""`nodeserve install` on a real machine."""

from pathlib import Path

import pytest

from nodeserve.cli.service_files import service_files
from tests.systemd.machine import NODESERVE

pytestmark = [pytest.mark.e2e, pytest.mark.vllm]


def test_it_says_what_to_do_next_and_starts_nothing(machine, installed):
    assert "systemctl enable --now nodeserve.socket nodeserve" in installed
    assert installed.count("wrote: ") == len(service_files(Path(NODESERVE), machine.version))


def test_what_is_installed_is_what_the_package_holds(machine, installed):
    for file in service_files(Path(NODESERVE), machine.version):
        if not file.is_operators:
            assert machine.path(str(file.path)).read_text() == file.text
    assert f"ExecStart={NODESERVE} serve" in machine.run("systemctl cat nodeserve.service")


def test_again_it_changes_nothing(machine, installed):
    machine.write("/etc/nodeserve/node.toml", "# mine\n")
    assert "kept: /etc/nodeserve/node.toml" in machine.run(f"{NODESERVE} install --dry-run")
    again = machine.run(f"{NODESERVE} install")
    assert "wrote" not in again
    assert machine.run("cat /etc/nodeserve/node.toml") == "# mine"


def test_the_manager_has_nothing_to_say_against_the_units(machine, installed):
    assert machine.run("systemd-analyze verify nodeserve.service nodeserve-tcp.socket") == ""


def test_the_operators_file_of_keys_is_roots_alone(machine, installed):
    assert machine.run("stat -c '%a %U' /etc/nodeserve/apikeys") == "600 root"
