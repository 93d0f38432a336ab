"""What watching and keeping cost, on and off by turns in one process: `thinwire-bench watching`.

One engine and one server answer a closed loop all the time; every `--slice` seconds the observers are taken off or put
on (order A B B A ..., so that drift of the machine falls on both). cost: 1 minus images/s with over images/s without,
of the medians of the slices; for metrics, page and traces together, and for the frame store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

IN_FLIGHT = 16


def add_commands(commands) -> None:
    """Registers `watching`, which sets `run`."""
    parser = commands.add_parser(
        "watching",
        help="throughput with and without metrics, traces and the frame store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default="layered", metavar="NAME|PATH")
    parser.add_argument("--clip", default="clip-lite")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slice", type=float, default=4.0, help="seconds of one slice (default: 4)")
    parser.add_argument("--rounds", type=int, default=6, help="slices of each kind (default: 6)")
    parser.set_defaults(run=_run)


@contextlib.contextmanager
def null_collector():
    """An OTLP endpoint that takes spans and forgets them: traces are really sent."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        spans = 0

        def Export(self, request, context):
            Collector.spans += sum(len(scope.spans) for each in request.resource_spans for scope in each.scope_spans)
            return trace_pb.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}", Collector
    finally:
        server.stop(1)


def order(kinds: list[str], rounds: int) -> list[str]:
    """Each kind `rounds` times; every other round runs backwards.

    >>> order(["a", "b"], 2)
    ['a', 'b', 'b', 'a']
    """
    return [kind for number in range(rounds) for kind in (kinds if number % 2 == 0 else kinds[::-1])]


async def measure(address: str, packets, switch, kinds: list[str], rounds: int, slice_s: float) -> dict[str, list]:
    """Images/s of each slice, by kind; `switch(kind)` comes before each."""
    from benchmarks.system.service_load import Load

    load, found = Load(address, packets), {kind: [] for kind in kinds}
    try:
        load.lone(10)
        for kind in order(kinds, rounds):
            switch(kind)
            outcomes = await load.closed(slice_s, IN_FLIGHT)
            if outcomes.failed or outcomes.refused_ms:
                raise RuntimeError(f"{outcomes.failed} failed, {len(outcomes.refused_ms)} refused: not a fair slice")
            found[kind].append(outcomes.per_s)
            print(f"thinwire-bench: {kind}: {outcomes.per_s:.2f}/s", file=sys.stderr, flush=True)
    finally:
        await load.close()
    return found


def _run(args: argparse.Namespace) -> int:
    from benchmarks.results.testbed import describe
    from benchmarks.system.service_load import make_packets
    from cloud.front.server import background_server
    from cloud.networks.assemble import open_engine
    from cloud.watch.assemble import Watch
    from cloud.watch.options import WatchOptions, WebOptions
    from thinwire.bundle import resolve_bundle

    path = resolve_bundle(args.bundle)
    packets = make_packets(path)
    with tempfile.TemporaryDirectory() as folder, null_collector() as (endpoint, collector):
        engine = open_engine(args.clip, [path], "cpu", args.threads)
        store = Path(folder) / "frames.db"
        watch = Watch(engine, WatchOptions(web=WebOptions(), store=store, traces=endpoint))
        watching = [each for each in engine.observers.all if each is not watch.archive]
        sets = {"off": [], "watch": watching, "store": [watch.archive]}

        def switch(kind: str) -> None:
            engine.observers.replace(sets[kind])

        with background_server(engine, watch=watch) as address:
            found = asyncio.run(measure(address, packets, switch, list(sets), args.rounds, args.slice))
            kept = watch.archive.store.frames
    medians = {kind: float(np.median(rates)) for kind, rates in found.items()}
    document = {
        "benchmark": "watching",
        "per_s": {kind: round(value, 3) for kind, value in medians.items()},
        "watch_cost": round(1 - medians["watch"] / medians["off"], 5),
        "store_cost": round(1 - medians["store"] / medians["off"], 5),
        "spread": {kind: round(float(np.std(rates) / np.mean(rates)), 4) for kind, rates in found.items()},
        "slices": {kind: [round(each, 2) for each in rates] for kind, rates in found.items()},
        "spans": collector.spans,
        "frames_kept": kept,
        "bundle": path.name,
        "clip": args.clip,
        "command": shlex.join(["thinwire-bench", *sys.argv[1:]]),
        "testbed": describe(),
    }
    print(json.dumps(document, separators=(",", ":"), allow_nan=False), flush=True)
    return 0
