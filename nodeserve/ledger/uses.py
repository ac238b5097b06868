"""What listeners with a budget of energy have used in its current period."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from nodeserve.energy.settle import HOUR_S
from nodeserve.wire.accounting import ListenerUse, UseReported

PERIODS: Final = ("hour", "day", "month")
"""Periods of budgets; they begin by UTC."""

MAX_REQUESTS: Final = 200_000
"""Requests whose listener is remembered, or whose energy waits for one."""

UsedByHour = Callable[[str, int], Mapping[int, int]]
"""Returns what a listener has used by hour, in mJ, from an hour since 1970 on."""


class Uses:
    """Energy by listener and hour, of what is booked; scrap too, for somebody pays for it."""

    def __init__(
        self, budgets: Mapping[str, str], used_by_hour: UsedByHour, *, now_unix_s: float
    ) -> None:
        """Begin with what is booked already; ``budgets`` has each listener's period."""
        self._budgets = dict(budgets)
        self._used = {
            listener: dict(used_by_hour(listener, _bounds(period, now_unix_s)[0]))
            for listener, period in self._budgets.items()
        }
        self._listeners: OrderedDict[str, str] = OrderedDict()
        self._nobodys: OrderedDict[str, dict[int, int]] = OrderedDict()

    def name(self, request_id: str, listener: str) -> None:
        """Take note of whose a request is."""
        if not self._budgets:
            return
        self._listeners[request_id] = listener
        if len(self._listeners) > MAX_REQUESTS:
            self._listeners.popitem(last=False)
        for hour, mj in self._nobodys.pop(request_id, {}).items():
            self._add(listener, hour, mj)

    def bear(self, request_id: str, hour: int, mj: int) -> None:
        """Take note of what was booked for a request."""
        if not self._budgets:
            return
        listener = self._listeners.get(request_id)
        if listener is not None:
            self._add(listener, hour, mj)
            return
        waiting = self._nobodys.setdefault(request_id, {})
        waiting[hour] = waiting.get(hour, 0) + mj
        if len(self._nobodys) > MAX_REQUESTS:
            self._nobodys.popitem(last=False)

    def report(self, *, now_unix_s: float, is_metered: bool) -> UseReported | None:
        """Return what to tell of the current periods; None where nobody has a budget.

        Without meters nothing is known of energy, which is not that none was used.
        """
        if not self._budgets:
            return None
        uses = []
        for listener, period in self._budgets.items():
            first, after = _bounds(period, now_unix_s)
            used = self._used[listener]
            for hour in [hour for hour in used if hour < first]:
                del used[hour]
            in_period = sum(mj for hour, mj in used.items() if hour < after)
            uses.append(
                ListenerUse(
                    listener=listener,
                    energy_mj=in_period if is_metered else None,
                    period_ends_unix_s=float(after * HOUR_S),
                )
            )
        return UseReported(uses=tuple(uses))

    def _add(self, listener: str, hour: int, mj: int) -> None:
        used = self._used.get(listener)
        if used is not None:
            used[hour] = used.get(hour, 0) + mj


def _bounds(period: str, now_unix_s: float) -> tuple[int, int]:
    """Return the first hour of the period that it is, and the first after it."""
    now = datetime.fromtimestamp(now_unix_s, UTC).replace(minute=0, second=0, microsecond=0)
    match period:
        case "month":
            begin = now.replace(day=1, hour=0)
            end = (begin + timedelta(days=32)).replace(day=1)
        case "day":
            begin = now.replace(hour=0)
            end = begin + timedelta(days=1)
        case _:
            begin, end = now, now + timedelta(hours=1)
    return int(begin.timestamp()) // HOUR_S, int(end.timestamp()) // HOUR_S
