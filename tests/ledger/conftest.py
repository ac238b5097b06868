"""A node with a ledger in a real process."""

import pytest

from tests.ledger.books import Books
from tests.ledger.nodes import Node


@pytest.fixture
def nodes(tmp_path):
    made = []

    def make(**spec):
        node = Node(tmp_path, **spec)
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(nodes):
    return nodes().start()


@pytest.fixture
def books(tmp_path):
    made = Books(tmp_path)
    yield made
    made.store.close()
