"""Write a figure as SVG. Hours are steps; where a value is not known the curve has a gap."""

import html
import math
from collections.abc import Iterator, Sequence
from typing import Final

from nodeserve.energy.series import Curve, Figure, Panel
from nodeserve.energy.utc import DAY_S, HOUR_S, write_utc

WIDTH: Final = 960
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73")
"""Of Okabe and Ito's palette, which the colour-blind can tell apart."""

_LEFT: Final = 72
_RIGHT: Final = 24
_TOP: Final = 24
_PANEL: Final = 150
_GAP: Final = 56
_LINE: Final = 15
_TICKS: Final = 8
_STEPS_S: Final = (
    *(HOUR_S * hours for hours in (1, 2, 3, 6, 12)),
    *(DAY_S * days for days in (1, 2, 7, 14, 28, 91, 182, 365)),
)


def to_svg(figure: Figure) -> str:
    """Return the figure as one SVG document, which needs no script, font or network."""
    height = _TOP + len(figure.panels) * (_PANEL + _GAP) + _LINE * (len(figure.caption) + 1)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    top = _TOP
    for panel in figure.panels:
        parts += _panel(panel, figure.hours_unix_s, top + _LINE)
        top += _PANEL + _GAP
    for number, line in enumerate(figure.caption):
        parts.append(_text(_LEFT, top + _LINE * number, line, size=10, fill="#555555"))
    return "\n".join([*parts, "</svg>", ""])


def nice_top(largest: float) -> float:
    """Return the end of an axis from 0 that takes ``largest``: 1, 2 or 5 times a power of ten."""
    if not 0 < largest < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next((power * step for step in (1, 2, 5) if power * step >= largest), power * 10)


def _panel(panel: Panel, hours: Sequence[int], top: int) -> Iterator[str]:
    bottom, right = top + _PANEL, WIDTH - _RIGHT
    known = [value for curve in panel.curves for value in curve.values if value is not None]
    highest = nice_top(max(known, default=0.0))
    yield _text(_LEFT, top - 8, f"{panel.title}, {panel.unit}", weight="bold")
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * _PANEL
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#dddddd"/>'
        yield _text(_LEFT - 6, y + 4, f"{share * highest:g}", anchor="end")
    for at, name in axis_ticks(hours):
        x = _x(at, hours)
        yield f'<path d="M{x:.1f} {bottom}v5" stroke="#555555"/>'
        yield _text(x, bottom + 18, name, anchor="middle", size=10)
    if not known:
        yield _text((_LEFT + right) / 2, (top + bottom) / 2, "unknown", anchor="middle")
    for number, curve in enumerate(panel.curves):
        colour = COLOURS[number % len(COLOURS)]
        path = _steps(curve, hours, bottom, highest)
        if path:
            yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        right_edge = right - 130 * (len(panel.curves) - 1 - number)
        yield _text(right_edge, top - 8, curve.label, anchor="end", fill=colour)


def _steps(curve: Curve, hours: Sequence[int], bottom: int, highest: float) -> str:
    """Return the path: a level for each hour, joined where hours with values follow."""
    path: list[str] = []
    joined = False
    for hour, value in zip(hours, curve.values, strict=True):
        if value is None:
            joined = False
            continue
        y = bottom - value / highest * _PANEL
        path.append(f"{'L' if joined else 'M'}{_x(hour, hours):.1f} {y:.1f}")
        path.append(f"H{_x(hour + HOUR_S, hours):.1f}")
        joined = True
    return "".join(path)


def _x(at_unix_s: int, hours: Sequence[int]) -> float:
    begin, end = hours[0], hours[-1] + HOUR_S
    return _LEFT + (at_unix_s - begin) / (end - begin) * (WIDTH - _LEFT - _RIGHT)


def axis_ticks(hours: Sequence[int]) -> list[tuple[int, str]]:
    """Return times for an axis with their names, some eight at most, at whole hours or days."""
    if not hours:
        return []
    begin, end = hours[0], hours[-1] + HOUR_S
    step = next((s for s in _STEPS_S if (end - begin) / s <= _TICKS), _STEPS_S[-1])
    first = -(-begin // step) * step
    times = range(first, end + 1, step)
    return [(at, write_utc(at)[:10] if step >= DAY_S else write_utc(at)[5:16]) for at in times]


def _text(  # noqa: PLR0913  (one attribute of the element each)
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    fill: str = "#222222",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}">{html.escape(text)}</text>'
    )
