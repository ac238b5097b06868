import re
from pathlib import Path

import pytest

from nodeserve.config.factors import FactorsFile, read_factors
from nodeserve.errors import ConfigError
from tests.config.test_schema import tables_of

WHOLE = """
currency = "EUR"
electricity_per_kwh = 0.21

[intensity]
file = "grid.csv"

[[site]]
pue = 1.2
source = "audit of 2025"

[[site]]
zone = "SWE"
pue = 1.08
source = "operator"

[[embodied]]
match = "L40S"
device_kg = 120
life_years = 5
source = "ours"

[[price]]
listener = "api"
prompt = 0.15
cached = 0.07
output = 0.6
"""


def write(tmp_path, text):
    path = tmp_path / "factors.toml"
    path.write_text(text)
    return path


def refusals(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        read_factors(write(tmp_path, text))
    return str(caught.value).splitlines()


def test_a_whole_file_is_read(tmp_path):
    file = read_factors(write(tmp_path, WHOLE))
    assert (file.currency, file.electricity_per_kwh, file.intensity.file) == (
        "EUR",
        0.21,
        "grid.csv",
    )
    assert [(site.zone, site.pue) for site in file.site] == [(None, 1.2), ("SWE", 1.08)]
    assert (file.embodied[0].server_kg, file.embodied[0].devices_per_server) == (0.0, 1)
    assert (file.price[0].listener, file.price[0].model, file.price[0].cached) == (
        "api",
        None,
        0.07,
    )


def test_every_key_is_described_and_no_other():
    text = (Path(__file__).parents[2] / "docs" / "energy.md").read_text()
    section = text.split("\n<!-- keys:")[1].split("\n`[[site]]`")[0]
    tables = tables_of(FactorsFile)
    keys = [name for name in FactorsFile.__struct_fields__ if name not in tables]
    for name, table in tables.items():
        keys += [f"{name}.{field}" for field in table.__struct_fields__]
    assert re.findall(r"^\| `([\w.]+)`", section, re.MULTILINE) == keys


def test_the_example_of_the_documentation_works(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "energy.md").read_text()
    file = read_factors(write(tmp_path, text.split("```toml\n")[1].split("```")[0]))
    assert (file.currency, file.site[0].pue, file.price[0].output) == ("EUR", 1.2, 0.6)


def test_an_empty_file_is_all_defaults(tmp_path):
    assert read_factors(write(tmp_path, "")) == FactorsFile()


def test_all_problems_are_named_at_once(tmp_path):
    text = (
        WHOLE.replace('currency = "EUR"\n', "")
        .replace("pue = 1.2", "pue = 0.9")
        .replace("output = 0.6", "output = -1")
        .replace("life_years = 5", "life_years = 0")
        .replace('match = "L40S"', 'match = ""\ndevices_per_server = 0')
        + '\n[[price]]\nlistener = "api"\nprompt = 1\noutput = 1\n'
    )
    path = tmp_path / "factors.toml"
    found = refusals(tmp_path, text)
    for said in (
        "currency is missing, but there are prices: name it, such as EUR",
        "site[0].pue is 0.9: a site has 1 or more, to 10",
        "price[0].output is -1: use 0 or more",
        "price[1] is of the same as price[0]: keep one",
        "embodied[0].life_years is 0: use a number above 0",
        "embodied[0].devices_per_server is 0: use 1 or more",
        "embodied[0].match is empty: write a part of the device's name",
    ):
        assert f"{path}: {said}" in found
    assert len(found) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pue = 1.2", "pue is not a setting"),
        ("[[price]]\nprompt = 1", "price[0].output is missing"),
        ('[intensity]\nfile = "x"\ncommand = ["y"]', "intensity sets both `file` and `command`"),
        ('[[site]]\npue = nan\nsource = "x"', "site[0].pue is nan"),
        ("currency = ", "is not TOML"),
    ],
)
def test_what_can_never_work_is_refused(tmp_path, text, said):
    assert any(said in line for line in refusals(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_factors(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 0"):
        read_factors(tmp_path / "bytes.toml")
