import importlib

import pytest

from nodeserve.cli.energy import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_is_there_and_says_what_it_does(run, name):
    module = importlib.import_module(f"nodeserve.cli.energy_{name}")
    assert module.command.name == name
    assert run("energy", name, "--help").exit_code == 0


def test_the_help_lists_them(run):
    shown = run("energy", "--help").output
    assert all(f"  {name} " in shown for name in COMMANDS)
