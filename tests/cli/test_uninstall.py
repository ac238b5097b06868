from pathlib import Path

import pytest

from nodeserve.cli.service_files import installed_paths

INSTALLED = [path for path in installed_paths() if path.exists()]


@pytest.mark.skipif(bool(INSTALLED), reason="nodeserve is installed as a service here")
def test_a_dry_run_of_what_is_not_installed_has_nothing_to_say(run):
    result = run("uninstall", "--dry-run")
    assert (result.exit_code, result.output) == (0, "")


def test_what_is_the_operators_is_not_among_what_goes():
    assert Path("/etc/nodeserve/node.toml") not in installed_paths()
