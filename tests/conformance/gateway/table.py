"""The table of what each gateway can do; ``python -m tests.conformance.gateway.table`` shows it."""

import sys
from typing import Final

from nodeserve.config.node import GatewayKind
from tests.conformance.gateway.capabilities import CAPABILITIES, Capability

BEGIN: Final = "<!-- table: tests/conformance/gateway/table.py -->"
END: Final = "<!-- end of table -->"


def _cell(capability: Capability, gateway: GatewayKind) -> str:
    return "yes" if gateway in capability.gateways else "no"


def markdown() -> str:
    """Return the table between its two marks."""
    rows = [
        f"| {capability.group} | {capability.name} | {_cell(capability, GatewayKind.PYTHON)} "
        f"| {_cell(capability, GatewayKind.RUST)} |"
        for capability in CAPABILITIES
    ]
    head = ["| API | what | `python` | `rust` |", "| --- | --- | --- | --- |"]
    return "\n".join([BEGIN, *head, *rows, END])


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
