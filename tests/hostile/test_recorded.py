"""The page for operators shows what the suite proves."""

from pathlib import Path

from nodeserve.config.node import GatewayKind
from tests.hostile.recorded import BEGIN, DEVIATIONS, END, markdown, passed
from tests.hostile.requests import ATTACKS, SLOW

PAGE = Path(__file__).parents[2] / "docs/hostile-input.md"


def test_the_page_and_the_suite_agree() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page[page.index(BEGIN) : page.index(END) + len(END)] == markdown()
    for gateway in GatewayKind:
        assert "`{}`: {} of {}".format(gateway, *passed(gateway)) in page


def test_every_attack_has_its_own_name_and_every_deviation_is_of_one() -> None:
    names = [attack.name for attack in (*SLOW, *ATTACKS)]
    assert len(names) == len(set(names))
    assert {name for _, name in DEVIATIONS} <= set(names)


def test_a_deviation_deviates() -> None:
    right = {attack.name: attack.right for attack in (*SLOW, *ATTACKS)}
    assert [key for key, said in DEVIATIONS.items() if said in right[key[1]]] == []
