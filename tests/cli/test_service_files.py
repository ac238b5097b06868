import shutil
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from nodeserve.cli.service_files import installed_paths, require_visible, service_files
from nodeserve.errors import ConfigError

PROGRAM = Path("/opt/nodeserve/bin/nodeserve")
SOURCE = Path(str(files("nodeserve") / "systemd"))
ROOT = Path(__file__).resolve().parents[2]
HAS_ANALYZE = shutil.which("systemd-analyze") is not None


def named(planned, name):
    return next(file for file in planned if file.path.name == name)


def test_only_the_programs_path_is_put_into_the_unit():
    text = named(service_files(PROGRAM, 257), "nodeserve.service").text
    source = (SOURCE / "nodeserve.service").read_text()
    differing = [
        (old, new)
        for old, new in zip(source.splitlines(), text.splitlines(), strict=True)
        if old != new
    ]
    assert differing == [
        (
            "ExecStart=/usr/local/bin/nodeserve serve --config /etc/nodeserve/node.toml",
            f"ExecStart={PROGRAM} serve --config /etc/nodeserve/node.toml",
        )
    ]


@pytest.mark.parametrize(("version", "is_new"), [(249, False), (253, False), (254, True)])
def test_older_releases_of_systemd_do_not_get_what_they_do_not_know(version, is_new):
    planned = service_files(PROGRAM, version)
    assert any("notify-reload" in file.text for file in planned) is is_new
    assert "Type=notify\n" in named(planned, "nodeserve.service").text
    assert {file.path for file in planned if not file.is_operators} <= set(installed_paths())


def test_every_file_of_the_package_is_installed():
    planned = service_files(PROGRAM, 257)
    assert len(planned) == len(list(SOURCE.iterdir()))
    assert {file.path.parts[1] for file in planned} == {"etc"}


def test_a_wheel_holds_the_files():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "systemd/*" in data["package-data"]["nodeserve"]


def test_a_path_that_a_unit_cannot_hold_is_refused():
    with pytest.raises(ConfigError, match="without such signs"):
        service_files(Path("/opt/my programs/nodeserve"), 257)


@pytest.mark.parametrize("place", ["/home", "/root", "/tmp"])
def test_a_program_that_the_service_cannot_see_is_refused(place):
    with pytest.raises(ConfigError, match=r"^/.* cannot be seen by a service"):
        require_visible([Path(place) / "venv/bin/nodeserve"])


def test_a_program_that_everybody_can_run_is_fine():
    require_visible([Path("/usr/bin/env")])


def test_a_program_behind_a_closed_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nodeserve.cli.service_files._HIDDEN", ())
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "nodeserve").touch(mode=0o755)
    with pytest.raises(ConfigError, match=r"^/.* is closed to the user.*chmod o\+rx"):
        require_visible([tmp_path / "closed" / "nodeserve"])


@pytest.mark.skipif(not HAS_ANALYZE, reason="this machine has no systemd-analyze")
def test_the_service_is_exposed_to_at_most_1_5(tmp_path):
    """Needs no running systemd; --threshold makes the exit code say it."""
    unit = tmp_path / "nodeserve.service"
    shutil.copy(SOURCE / "nodeserve.service", unit)
    words = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", "--no-pager"]
    ran = subprocess.run([*words, str(unit)], check=False, capture_output=True, text=True)
    if "nrecognized option" in ran.stderr:
        pytest.skip("this machine's systemd is too old to tell without a running one")
    assert ran.returncode == 0, ran.stdout
    assert "exposure level for nodeserve.service" in ran.stdout


def test_the_listeners_names_agree_with_the_example_of_a_configuration():
    config = tomllib.loads((SOURCE / "node.toml").read_text())
    socket = (SOURCE / "nodeserve.socket").read_text()
    assert f"ListenStream={config['socket']}\n" in socket
    assert "FileDescriptorName=api\n" in socket
