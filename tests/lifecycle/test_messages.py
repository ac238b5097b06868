import dataclasses
import typing

import pytest

from nodeserve.lifecycle import messages


@pytest.mark.parametrize(
    "kind", [*typing.get_args(messages.Event), *typing.get_args(messages.Command)]
)
def test_events_and_commands_cannot_be_changed_on_their_way(kind):
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert hasattr(kind, "__slots__")
