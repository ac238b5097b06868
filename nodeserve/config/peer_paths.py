"""Which workers are to hand KV over between GPUs that cannot read each other."""

from collections.abc import Sequence

from nodeserve.config.facts import Topology
from nodeserve.config.node import Worker
from nodeserve.config.problems import Problems
from nodeserve.wire.kinds import Role


def refuse_gaps(workers: Sequence[Worker], topology: Topology, problems: Problems) -> None:
    """Note each pair of a prefill and a decode worker without a direct path between their GPUs.

    There is no slower way: KV would be computed again. Where the driver cannot say which GPUs
    reach each other, opening a peer's memory and the probe at the start do.
    """
    gaps = {frozenset(pair) for pair in topology.peer_gaps or ()}
    if not gaps:
        return
    indexes = {gpu.uuid: gpu.index for gpu in topology.gpus}
    for prefill in (worker for worker in workers if worker.role is Role.PREFILL):
        for decode in (worker for worker in workers if worker.role is Role.DECODE):
            pairs = zip(prefill.gpu_uuids, decode.gpu_uuids, strict=False)
            for one, other in pairs:
                if one in indexes and other in indexes:
                    pair = (indexes[one], indexes[other])
                    if frozenset(pair) in gaps:
                        problems.add(
                            "workers",
                            f"{prefill.name} on GPU {pair[0]} and {decode.name} on GPU {pair[1]}: "
                            "these GPUs cannot read each other's memory, so KV cannot be handed "
                            "over; see `nvidia-smi topo -p2p r`, set `gpus`, or serve with "
                            'role = "aggregated"',
                        )
                        break
