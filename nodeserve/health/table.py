"""The table of signals: what each of them means, and what it asks for."""

import tomllib
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from nodeserve.config.problems import nearest
from nodeserve.errors import ConfigError, InvariantError
from nodeserve.wire.device_report import ACTIONS, SEVERITIES, DeviceSample

DATA: Final = "data/signals.toml"
"""Where the table is shipped, below this package."""

OTHER_XID: Final = "xid_other"
"""The row of every XID without one of its own."""

_FENCES: Final = ("fence", "fence_node")
_NO_FIGURES: Final = ("meter", "name", "index", "age_s")


class Escalation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``times`` findings within ``within_s`` ask for ``action`` instead of the row's own."""

    times: int
    within_s: float
    action: str


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signal. The head of the file says what the fields mean.

    Attributes:
        number: The XID, or the value of the driver's verdict.
        field: What of a DeviceSample is looked at.
        hold_s: How long a level must last before it is a finding.
        clear_after_s: How long it must have been good before the finding goes.
        is_overridden: Whether an operator has chosen ``action``.
    """

    source: Literal["xid", "recovery", "call", "sample", "state"]
    what: str
    severity: str
    action: str
    provenance: str
    conflicts: str = ""
    number: int | None = None
    kind: Literal["level", "absent", "rate", "share"] | None = None
    field: str | None = None
    reason: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    window_s: float = 0.0
    hold_s: float = 0.0
    clear_after_s: float = 3600.0
    group: str | None = None
    escalates: Escalation | None = None
    is_overridden: bool = False


Table: TypeAlias = Mapping[str, Row]
"""Rows by their signals."""


def parse_table(text: str) -> dict[str, Row]:
    """Return the rows of a table's text.

    Raises:
        InvariantError: The text is no table: it is shipped with this release.
    """
    try:
        rows = msgspec.convert(tomllib.loads(text), dict[str, Row])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvariantError(f"{DATA}: {error}") from error
    wrong = [f"{signal}: {what}" for signal, row in rows.items() for what in _problems(row)]
    if wrong:
        raise InvariantError(f"{DATA}: " + "; ".join(wrong))
    return rows


def _problems(row: Row) -> Iterable[str]:
    asked = [row.action, *([row.escalates.action] if row.escalates else [])]
    yield from (f"action {action} is unknown" for action in asked if action not in ACTIONS)
    if row.severity not in SEVERITIES:
        yield f"severity {row.severity} is unknown"
    if row.action in _FENCES and row.severity != "fatal":
        yield f"{row.action} asks for an operator, who clears fatal findings alone"
    if not row.provenance:
        yield "provenance is missing"
    figures = set(DeviceSample.__struct_fields__).difference(_NO_FIGURES)
    if (row.source == "sample") != (row.field in figures and row.kind is not None):
        yield f"field {row.field} of a sample, kind {row.kind}"
    if row.kind in ("rate", "share") and (row.window_s <= 0 or row.at_least is None):
        yield "a rate or share needs at_least and window_s"
    if row.kind == "level" and row.at_least is row.at_most is None:
        yield "a level needs at_least or at_most"


def with_overrides(table: Table, overrides: Mapping[str, str]) -> dict[str, Row]:
    """Return the table with an operator's actions, by signal: ``{"xid_63": "warn"}``.

    Severities stay, and so what clears by itself. An override takes the row's escalation along.

    Raises:
        ConfigError: A signal or an action is not known; one line for each, with what is near.
    """
    wrong = []
    for signal, action in overrides.items():
        key = f"health.overrides.{signal}"
        if signal not in table:
            wrong.append(f"{key} is no signal{nearest(signal, table)}")
        if action not in ACTIONS:
            known = ", ".join(ACTIONS)
            wrong.append(f"{key} is {action!r}{nearest(action, ACTIONS)}; use one of {known}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    changed = {
        signal: msgspec.structs.replace(
            table[signal], action=action, escalates=None, is_overridden=True
        )
        for signal, action in overrides.items()
    }
    return {**table, **changed}
