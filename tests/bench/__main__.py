"""`make bench`: run the benches that ONLY names (all by default), print the table, write build/bench.json."""

from __future__ import annotations

import asyncio
import os
import pstats
import sys
from pathlib import Path

from tests.bench import gateway, init, latency, naps, outlet, pool_io, snapshots, throughput
from tests.bench.figures import Figure, table, write_json
from tests.bench.site import site

BENCHES = {
    "tti_cold": latency.tti_cold,
    "burst": latency.burst,
    "steer": latency.steer,
    "interrupt": latency.interrupt,
    "output": throughput.output,
    "events": throughput.events,
    "viewers": throughput.viewers,
    "init": init.init,
    "gateway": gateway.gateway,
    "outlet": outlet.outlet,
    "snapshot": snapshots.snapshot,
    "naps": naps.naps,
    "pool_io": pool_io.pool_io,
}


async def main() -> int:
    wanted = [name for name in os.environ.get("ONLY", "").split(",") if name] or list(BENCHES)
    unknown = [name for name in wanted if name not in BENCHES]
    if unknown:
        print(f"ONLY={','.join(unknown)}: no such bench; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    image = os.environ.get("CARREL_IMAGE", "carrel/sandbox:latest")
    figures: list[Figure] = []
    async with site(image, quiet="VERBOSE" not in os.environ) as here:
        for name in wanted:
            print(f"bench: {name} …", file=sys.stderr, flush=True)
            figures += await BENCHES[name](here)
    target = Path("build/bench.json")
    write_json(figures, target)
    print(table(figures))
    print(f"raw figures: {target}")
    if profile := os.environ.get("PROFILE"):
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
