import os
from pathlib import Path

import pytest

from nodeserve.cli import install
from nodeserve.cli.service_files import ServiceFile
from nodeserve.errors import ConfigError, PeerError


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A systemctl that says of which release it is."""

    def says(line):
        program = tmp_path / "bin" / "systemctl"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{line}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return says


def test_a_dry_run_shows_each_file_and_changes_nothing(run, systemctl):
    systemctl("systemd 257 (257.9-1)")
    result = run("install", "--dry-run")
    assert "+++ /etc/systemd/system/nodeserve.service" in result.output
    assert "+Type=notify-reload" in result.output
    assert "would run: systemd-sysusers /etc/sysusers.d/nodeserve.conf" in result.output
    assert not Path("/etc/systemd/system/nodeserve.service").exists()


def test_a_release_of_systemd_that_is_too_old_is_refused(run, systemctl):
    systemctl("systemd 239 (239-78.el8)")
    result = run("install", "--dry-run")
    assert result.exit_code == 78
    assert "systemd is 239, the units need 249" in result.output


def test_a_machine_without_systemd_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("install", "--dry-run")
    assert result.exit_code == 78
    assert "no systemd" in result.output


def test_a_file_is_written_whole_and_readable_whatever_the_umask(tmp_path):
    file = ServiceFile(tmp_path / "etc" / "unit", "[Unit]\n")
    before = os.umask(0o077)
    try:
        assert install.write(file) == f"wrote: {file.path}"
    finally:
        os.umask(before)
    assert file.path.read_text() == "[Unit]\n"
    assert file.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.path.parent.iterdir()] == ["unit"]
    assert install.write(file) == f"unchanged: {file.path}"


def test_what_the_operator_wrote_is_kept(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text("mine")
    file = ServiceFile(path, "example", is_operators=True)
    assert install.difference(file) == f"kept: {path}\n"
    assert install.write(file) == f"kept: {path}"
    assert path.read_text() == "mine"


def test_a_changed_file_is_shown_as_a_difference(tmp_path):
    path = tmp_path / "unit"
    path.write_text("a\nb\n")
    shown = install.difference(ServiceFile(path, "a\nc\n"))
    assert "-b\n" in shown
    assert "+c\n" in shown
    assert install.difference(ServiceFile(path, "a\nb\n")) == f"unchanged: {path}\n"


def test_a_program_that_fails_is_shown_with_what_it_said():
    with pytest.raises(PeerError, match="ended with code 3: no such user"):
        install.run(("sh", "-c", "echo no such user >&2; exit 3"))
    with pytest.raises(PeerError, match="no-such-program"):
        install.run(("no-such-program",))


def test_the_program_is_the_one_beside_this_python():
    try:
        found = install.find_program()
    except ConfigError as error:
        pytest.skip(str(error))
    assert found.name == "nodeserve"
    assert found.is_absolute()
