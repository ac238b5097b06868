"""Read the table of signals that this release ships."""

import importlib.resources

from nodeserve.health.table import DATA, Row, parse_table


def read_table() -> dict[str, Row]:
    """Return the shipped table.

    Raises:
        InvariantError: It is no table.
    """
    text = importlib.resources.files("nodeserve.health").joinpath(DATA).read_text("utf-8")
    return parse_table(text)
