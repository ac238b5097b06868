import pytest

from nodeserve.config.node import AccountingSettings
from nodeserve.errors import ConfigError


def test_nothing_is_booked_unless_asked_for(load):
    assert load().accounting is None


def test_a_file_says_where_and_for_how_long(load):
    text = '[accounting]\nenabled = true\ndb = "/srv/l.db"\nzone = "DEU"\nwindow_days = 2\n'
    assert load(text + '[health.overrides]\nxid_63 = "warn"\n').accounting == AccountingSettings(
        db_path="/srv/l.db", zone="DEU", window_days=2.0, health_overrides={"xid_63": "warn"}
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[accounting]\nenabled = true\nwindow_days = 0\n", "accounting.window_days is 0"),
        ('[accounting]\nenabled = true\ndb = "l.db"\n', "accounting.db is 'l.db'"),
        ('[health.overrides]\nxid_63 = "warn"\n', "health.overrides is set"),
    ],
)
def test_what_cannot_be_is_refused_by_name(load, text, problem):
    with pytest.raises(ConfigError, match=problem):
        load(text)
