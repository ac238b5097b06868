"""What is known to be wrong with the node's devices, and which of them are out of service."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from nodeserve.errors import RequestError
from nodeserve.wire.device_report import Finding

NODE: Final = ""
"""The meter of a finding that concerns the whole node."""

MAX_TURNS: Final = 3
TURNS_WITHIN_S: Final = 3600.0
"""How often findings may take down a GPU's worker within so long; then the GPU is fenced, so that
a finding that comes and goes does not keep a worker starting."""

RESTARTS: Final = "restarts"
"""The signal of a GPU that was fenced for that."""

_SAME_S: Final = 1.0
"""Two accounts of one beginning may differ by so much: the monitor may have started anew."""


@dataclass(slots=True)
class DeviceState:
    """Findings and fences. Travels from one release to the next: new fields have defaults.

    Attributes:
        findings: The last report's, without those that an operator has cleared.
        fences: Why a GPU is out of service, by its meter, until an operator clears it.
        cleared: Since when what an operator has cleared had been so, by ``_key``.
        done: Since when what a worker was restarted for had been so, by ``_key``.
        turns: When findings have taken down a meter's worker, of late.
    """

    findings: tuple[Finding, ...] = ()
    fences: dict[str, Finding] = field(default_factory=dict)
    cleared: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)
    turns: dict[str, list[float]] = field(default_factory=dict)

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """The findings, and what a GPU is still fenced for though nobody reports it any more."""
        known = {_key(finding) for finding in self.findings}
        older = [finding for finding in self.fences.values() if _key(finding) not in known]
        return (*older, *self.findings)

    def report(self, findings: Iterable[Finding]) -> None:
        """Take a whole report; what is not in it any more is over, but for the fences."""
        self.findings = tuple(f for f in findings if not _is_in(self.cleared, f))
        for finding in self.findings:
            if finding.action in ("fence", "fence_node"):
                self.fence(finding)

    def fence(self, finding: Finding) -> None:
        """Take a finding's device out of service, until it is cleared."""
        before = self.fences.get(finding.meter)
        if before is None or (finding.action == "fence_node" != before.action):
            self.fences[finding.meter] = finding

    def clear(self, meter: str | None) -> list[Finding]:
        """Forget what is wrong with a device, or with None with all; return what that was.

        What began no later is not heard of again; what begins anew is.

        Raises:
            RequestError: Nothing is wrong with it; with the devices of which something is.
        """
        gone = [f for f in self.all_findings if meter in (None, f.meter)]
        if not gone and meter is not None:
            others = ", ".join(dict.fromkeys(f.meter for f in self.all_findings)) or "none"
            raise RequestError(f"GPU {meter} has no finding to clear; those that have: {others}")
        for finding in gone:
            self.cleared[_key(finding)] = finding.since_unix_s
            self.fences.pop(finding.meter, None)
            self.turns.pop(finding.meter, None)
        self.findings = tuple(f for f in self.findings if f not in gone)
        return gone

    def fence_of(self, meters: Iterable[str]) -> Finding | None:
        """Return why a worker with these GPUs must not run; None where it may."""
        for finding in self.fences.values():
            if finding.action == "fence_node" or finding.meter == NODE:
                return finding
        found = (self.fences[meter] for meter in meters if meter in self.fences)
        return next(found, None)

    def asking(self, action: str, meters: Iterable[str]) -> Finding | None:
        """Return a finding of these GPUs that asks for ``action``; None where there is none."""
        among = set(meters)
        return next((f for f in self.findings if f.action == action and f.meter in among), None)

    def new_restarts(self) -> list[Finding]:
        """Return the findings that ask for a restart and were not returned before."""
        new = [f for f in self.findings if f.action == "restart" and not _is_in(self.done, f)]
        self.done.update((_key(finding), finding.since_unix_s) for finding in new)
        return new

    def take_turn(self, finding: Finding, now_s: float) -> bool:
        """Tell whether a finding may take its GPU's worker down once more; if not, fence it."""
        kept = self.turns.get(finding.meter, [])
        turns = [at_s for at_s in kept if at_s > now_s - TURNS_WITHIN_S]
        if len(turns) >= MAX_TURNS:
            detail = (
                f"its worker was taken down {len(turns)} times within an hour: {finding.signal}"
            )
            self.fence(
                Finding(
                    meter=finding.meter,
                    signal=RESTARTS,
                    severity="fatal",
                    action="fence",
                    detail=detail,
                    provenance="nodeserve: what comes and goes must not keep a worker starting",
                    since_unix_s=finding.since_unix_s,
                )
            )
            return False
        self.turns[finding.meter] = [*turns, now_s]
        return True


def _key(finding: Finding) -> str:
    return f"{finding.meter} {finding.signal}"


def _is_in(known: dict[str, float], finding: Finding) -> bool:
    """Tell whether a finding is the one that is known, and has not begun since."""
    since = known.get(_key(finding))
    return since is not None and finding.since_unix_s <= since + _SAME_S
