from pathlib import Path

import pytest

from nodeserve import errors
from nodeserve.cli.exit_codes import EXIT_CODES, to_help, to_markdown

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_holds_the_table():
    assert to_markdown() in README.read_text()


@pytest.mark.parametrize("command", ["", "serve"])
def test_the_help_holds_the_table(run, command):
    shown = run(*command.split(), "--help").output
    rows = [" ".join(line.split()) for line in to_help().splitlines()[1:]]
    assert " ".join(rows) in " ".join(shown.split())
    assert len(rows) == len(EXIT_CODES) + 1


def test_every_kind_of_error_is_in_the_table():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and errors.NodeserveError in kind.__bases__
    ]
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert {kind.exit_code for kind in kinds} <= {*EXIT_CODES}
