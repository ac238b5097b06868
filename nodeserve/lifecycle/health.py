"""What a node lacks of what it should have, in words."""

from typing import Final

from nodeserve.lifecycle.process import Phase
from nodeserve.lifecycle.slot import Slot
from nodeserve.lifecycle.slots import Slots
from nodeserve.wire.kinds import ProcessKind, Role

_DOES: Final = {Role.DECODE: "decodes", Role.PREFILL: "prefills"}


def losses(slots: Slots) -> list[str]:
    """Return what keeps a node from serving with all it should, worst first; empty if nothing.

    A node may do without prefill workers, for the others compute prompts too.
    """
    has_prefill = any(slot.role is Role.PREFILL for slot in slots.of_kind(ProcessKind.WORKER))
    needed = (Role.DECODE, Role.PREFILL) if has_prefill else (Role.DECODE,)
    lost = (slot for slot in slots.by_name.values() if _is_missed(slot))
    return [
        *(f"no worker {_DOES[role]}" for role in needed if not _takes(slots, role)),
        *(f"{slot.name} is {slot.state()}{_cure(slot)}" for slot in lost),
        *(word for slot in slots.of_kind(ProcessKind.WORKER) for word in _makeshift(slot)),
    ]


def _makeshift(slot: Slot) -> list[str]:
    """Return what a worker does that it would not do if the GPUs were well."""
    said = []
    if slot.role_before is not None:
        said.append(f"{slot.name} stands in: {slot.role} instead of {slot.role_before}")
    if slot.spared is not None:
        said.append(f"{slot.name} serves on as the last worker, though {slot.spared}")
    return said


def _is_missed(slot: Slot) -> bool:
    """Tell whether it is wanted and does not serve; a fork server only if it stays away."""
    if slot.kind is ProcessKind.FORKSERVER:
        return slot.life.phase is Phase.FAILED
    return slot.wanted and (not slot.serves or slot.fence is not None)


def _cure(slot: Slot) -> str:
    if slot.fence is not None:
        return f": {slot.fence}"
    failed = slot.life.phase is Phase.FAILED
    return f" (`nodeserve restart {slot.name}` tries again)" if failed else ""


def can_serve(slots: Slots) -> bool:
    """Return whether a new request can be answered by what runs at present.

    Any worker will do: where nobody else is left, prefill workers decode too.
    """
    return (
        any(slot.serves for slot in slots.of_kind(ProcessKind.DISPATCHER))
        and any(slot.serves for slot in slots.of_kind(ProcessKind.GATEWAY))
        and any(_takes(slots, role) for role in _DOES)
    )


def last_for(slots: Slots, slot: Slot, *, then: Role | None = None) -> str | None:
    """Return what a worker is the last one to do; None where another one does it too.

    What it does in its next role, ``then``, is not lost.
    """
    for role, does in _DOES.items():
        if then in (role, Role.AGGREGATED):
            continue
        workers = _takes(slots, role)
        if slot in workers and len(workers) == 1:
            return does
    return None


def _takes(slots: Slots, role: Role) -> list[Slot]:
    """Return the workers that get requests of a role at present."""
    return [
        slot
        for slot in slots.of_kind(ProcessKind.WORKER)
        if slot.serves and not slot.draining and slot.role in (role, Role.AGGREGATED)
    ]
