"""A node whose one answer is under way, and what a client sees of it."""

from nodeserve.wire.kinds import Role
from tests.dispatcher.fakes import FakeEngine, FakeGateway, FakeNode, output


async def stream(node: FakeNode) -> tuple[FakeEngine, FakeGateway, str]:
    """Return an engine, its gateway and a leg in the middle of its stream."""
    engine = await node.engine(10, Role.AGGREGATED)
    gateway = await node.gateway(20)
    gateway.add("a")
    leg_id, _ = await engine.leg()
    engine.say(output(leg_id, [1]))
    await gateway.outputs()
    return engine, gateway, leg_id


async def tokens(gateway: FakeGateway, count: int) -> list[int]:
    """Return the next tokens of the one stream, in however many outputs they come."""
    seen: list[int] = []
    while len(seen) < count:
        for row in await gateway.outputs():
            seen += row[1]
    return seen
