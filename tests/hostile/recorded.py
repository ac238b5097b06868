"""Where vLLM's front ends answer otherwise than the table holds for right, and what they say.

``python -m tests.hostile.recorded`` prints the table of docs/hostile-input.md.
"""

import sys
from collections.abc import Mapping
from typing import Final

from nodeserve.config.node import GatewayKind
from tests.hostile.requests import ATTACKS, SLOW, Attack

BEGIN: Final = "<!-- table: tests/hostile/recorded.py -->"
END: Final = "<!-- end of table -->"

_BOTH: Final = {
    "no Host": "200",
    "two Hosts": "200",
    "an absolute target": "200",
    "a body of plain text": "400",
    "a compressed body": "400",
    "a stop string of 1 MiB": "200",
    "1 MiB of pattern": "500",
    "a schema that is itself": "500",
    "a schema elsewhere": "200",
    "20,000 values": "500",
    "a type that is none": "200",
    "a pattern that is none": "200",
}
_PYTHON: Final = {
    "a byte order mark": "200",
    "an endless bias": "200",
}
_RUST: Final = {
    "half a request line": "waits",
    "a byte of the head a tenth of a second": "waits",
    "a body that never comes": "waits",
    "a length of 10 GiB": "waits",
    "a chunked body of 80 MiB": "400",
    "lines that end in LF": "200",
    "`n: 0`": "200",
    "a back reference": "500",
    "unbalanced brackets": "500",
    "a broken pattern": "500",
    "then one that does not": "500",
    "a chat template of its own": "500",
    "one without an end": "500",
}
DEVIATIONS: Final[Mapping[tuple[GatewayKind, str], str]] = {
    **{(GatewayKind.PYTHON, name): said for name, said in (_BOTH | _PYTHON).items()},
    **{(GatewayKind.RUST, name): said for name, said in (_BOTH | _RUST).items()},
}
"""By gateway and attack. A 500 is a request that failed alone."""


def _cell(gateway: GatewayKind, attack: Attack) -> str:
    said = DEVIATIONS.get((gateway, attack.name))
    return "as asked" if said is None else f"**{said}**"


def markdown() -> str:
    """Return the table between its two marks."""
    attacks = sorted((*SLOW, *ATTACKS), key=lambda attack: attack.row)
    rows = [
        f"| {attack.row} | {attack.name} | {' or '.join(sorted(attack.right))} "
        f"| {_cell(GatewayKind.PYTHON, attack)} | {_cell(GatewayKind.RUST, attack)} |"
        for attack in attacks
    ]
    head = ["| row | what is sent | right | `python` | `rust` |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([BEGIN, *head, *rows, END])


def passed(gateway: GatewayKind) -> tuple[int, int]:
    """Return how many attacks a gateway answers as the table asks, and how many there are."""
    attacks = (*SLOW, *ATTACKS)
    return sum((gateway, attack.name) not in DEVIATIONS for attack in attacks), len(attacks)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
