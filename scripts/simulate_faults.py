"""Run seeds of the fault simulation on every core of this machine."""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from nodeserve.sim.faults import plan_of
from nodeserve.sim.run import Failure, describe, run, shortest

SEEDS_AT_A_TIME = 25


def run_some(seeds: range) -> tuple[int, Failure | None]:
    """Return how many seeds were run, and the first failure among them."""
    logging.disable(logging.CRITICAL)  # the dispatcher warns of every fault
    for count, seed in enumerate(seeds, start=1):
        failure = run(plan_of(seed))
        if failure is not None:
            return count, failure
    return len(seeds), None


def chunks(first: int, num_seeds: int) -> Iterator[range]:
    """Yield the seeds in pieces for the workers."""
    end = first + num_seeds
    for start in range(first, end, SEEDS_AT_A_TIME):
        yield range(start, min(start + SEEDS_AT_A_TIME, end))


def main() -> None:
    """Print seeds per second; exit with 1 and a story when one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    begun_s = time.monotonic()
    num_run, failure = 0, None
    with multiprocessing.Pool(args.workers) as pool:
        for count, found in pool.imap_unordered(run_some, chunks(args.first, args.seeds)):
            num_run += count
            if found is not None:
                failure = found
                break
    took_s = time.monotonic() - begun_s
    print(f"{num_run} seeds in {took_s:.1f} s: {num_run / took_s:.0f} seeds/s", flush=True)
    if failure is not None:
        print(f"seed {failure.plan.seed} failed; its story is being shortened", flush=True)
        logging.disable(logging.CRITICAL)
        print("\n".join(describe(shortest(failure))))
        sys.exit(1)
    print("nothing failed")


if __name__ == "__main__":
    main()
