import pytest

from nodeserve.config.node import GatewayKind, Listener


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ({"socket": "/run/a.sock"}, "/run/a.sock"),
        ({"host": "127.0.0.1", "port": 80}, "127.0.0.1:80"),
        ({"host": "::1", "port": 80}, "[::1]:80"),
    ],
)
def test_an_address_reads_as_it_is_written(place, address):
    assert Listener(name="a", gateway=GatewayKind.RUST, **place).address == address
