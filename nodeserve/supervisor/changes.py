"""Carry a new configuration out, as far as the processes of the node are concerned."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from nodeserve.config.diff import RESTARTED, Change
from nodeserve.config.node import NodeConfig
from nodeserve.errors import NodeserveError
from nodeserve.lifecycle.messages import Event, RoleAsked
from nodeserve.lifecycle.node import NodeLife
from nodeserve.lifecycle.rollout import Rollout
from nodeserve.lifecycle.state import NodePhase
from nodeserve.supervisor.plan import BLOCK_MANAGER, gateway_names, slot_plans
from nodeserve.wire import control

_log: Final = logging.getLogger(__name__)


class Changes:
    """What is still to be done for the present configuration.

    Attributes:
        rollout: The steps that are left; the next program goes on with it.
    """

    def __init__(
        self,
        life: NodeLife,
        rollout: Rollout,
        *,
        apply: Callable[[Event], None],
        tell: Callable[[control.Message], None],
    ) -> None:
        self.rollout = rollout
        self._life = life
        self._apply = apply
        self._tell = tell

    def begin(self, change: Change, config: NodeConfig, *, outdated: Sequence[str] = ()) -> None:
        """Take the first steps from another configuration to ``config``.

        ``outdated`` are fork servers of another release than ours: they start anew first, so
        that whatever starts from then on is of ours. Their children go on.
        """
        for line in change.lines():
            _log.info("configuration_changes %s", line)
        gateways = [
            name
            for listener in config.listeners
            if listener.name in change.listeners_restarted
            for name in gateway_names(listener)
        ]
        manager = [BLOCK_MANAGER] if change.block_manager == RESTARTED else []
        self.rollout.extend(
            slot_plans(config),
            self._life.slots,
            # Gateways last: what they let through must fit every engine.
            restarts=[*outdated, *manager, *change.restarted, *gateways],
            additions_wait=change.additions_wait,
        )
        if change.live or change.block_manager is not None:
            self._tell(
                control.SetRouting(
                    local_prefill_tokens=config.router.local_prefill_tokens,
                    max_queued_requests=config.router.max_queued_requests,
                    names_listeners=config.tiers is not None,
                    min_bandwidth_gbps=config.router.min_bandwidth_gbps,
                )
            )
        for name, role in change.roles.items():
            self._do(RoleAsked(name, role, force=True))

    def go_on(self) -> None:
        """Take the next steps that can be taken; call it after every event."""
        while self._life.phase is NodePhase.READY:
            step = self.rollout.next_step(self._life.slots)
            if step is None:
                break
            self._do(step)
        if self.rollout.halted is not None and not self.rollout.is_told:
            self.rollout.is_told = True
            _log.error("configuration_halted name=%s: the rest runs as before", self.rollout.halted)

    def _do(self, event: Event) -> None:
        try:
            self._apply(event)
        except NodeserveError as error:
            _log.error("configuration_step_failed %s", error)
