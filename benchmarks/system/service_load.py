"""What the service does when idle, when busy, when overrun and after a long time: `thinwire-bench service`.

The server is a process of its own; this process sends packets made beforehand. Open-loop load: requests leave on a
schedule, whatever became of those before, as cameras send them; a closed loop would slow down with the server and hide
its queue ("coordinated omission", Tene). Every ratio is of two figures of one run on one machine.

start_s: process start to `listening on`. lone_overhead_ms_p50: round trip of a lone request, by a blocking call as
`thinwire-edge` sends lone images, minus what its reply says decoding, synthesis and CLIP took. capacity: images/s with
enough requests in flight to fill batches. overload_p99_ratio: p99 of accepted requests at 5x capacity over p99 at 0.8
of it. overload_goodput_ratio: answers per second at 5x capacity over capacity; client_cores: what this process used of
the machine's cores meanwhile, which the service lacked. reject_ms_p99: how long a refusal took.
soak_rss_growth: resident memory at the end of a long 0.8 load over that after its first tenth, minus 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge.defaults import DEFAULT_BUNDLE

LABELS = ("cat", "dog", "car", "tree", "house", "person", "boat", "bicycle")
DEADLINE_S = 10.0
LOAD, OVERLOAD = 0.8, 5.0
EXEC = (
    "import os,sys; open(sys.argv[1],'w').write(str(os.getpid())); "
    "os.execv(sys.executable,[sys.executable,'-m','cloud.cli',*sys.argv[2:]])"
)


def add_commands(commands) -> None:
    """Registers `service`, which sets `run`."""
    parser = commands.add_parser(
        "service",
        help="start time, overhead of a lone request, overload and soak of a server process",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help=f"codec (default: {DEFAULT_BUNDLE})"
    )
    parser.add_argument("--clip", default="clip-lite", help="CLIP; see thinwire-cloud serve")
    parser.add_argument("--threads", type=int, help="CPU threads of the server's networks")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each load (default: 20)")
    parser.add_argument("--soak", type=float, default=60.0, help="seconds of soak; 1800 for the target (default: 60)")
    parser.add_argument("--only", choices=("start", "lone", "overload", "soak"), help="measure only this")
    parser.add_argument("--seed", type=int, default=0, help="seed of the arrival times")
    parser.add_argument("--json", metavar="PATH", help="also write the JSON document to PATH")
    parser.set_defaults(run=_run)


@dataclass
class Outcomes:
    """What became of the requests of one load, milliseconds from their scheduled time."""

    answered_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    failed: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0  # of this process, which shares the service's cores

    @property
    def per_s(self) -> float:
        return len(self.answered_ms) / self.wall_s

    @property
    def client_cores(self) -> float:
        return round(self.cpu_s / self.wall_s, 3)

    def p99(self) -> float:
        return float(np.percentile(self.answered_ms, 99)) if self.answered_ms else float("nan")


class Load:
    """Sends packets over one channel; retries are off, so that a refusal is seen as one."""

    def __init__(self, address: str, packets: Sequence[bytes]) -> None:
        import grpc

        from thinwire.v1 import inference_pb2 as pb
        from thinwire.v1 import inference_pb2_grpc

        self._pb, self._error, self._full = pb, grpc.aio.AioRpcError, grpc.StatusCode.RESOURCE_EXHAUSTED
        options = [("grpc.enable_retries", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._blocking_channel = grpc.insecure_channel(address, options=options)
        self._blocking_stub = inference_pb2_grpc.InferenceServiceStub(self._blocking_channel)
        self._requests = [
            pb.ClassifyRequest(image=pb.ImageInput(packet=packet), labels=LABELS, prompt_set="1") for packet in packets
        ]

    async def close(self) -> None:
        await self._channel.close()
        self._blocking_channel.close()

    async def one(self, number: int):
        return await self._stub.Classify(self._requests[number % len(self._requests)], timeout=DEADLINE_S)

    def lone(self, count: int) -> list[float]:
        """Milliseconds of each round trip that were neither decoding, nor synthesis, nor CLIP."""
        overheads = []
        for number in range(count):
            request = self._requests[number % len(self._requests)]
            start = time.perf_counter()
            timing = self._blocking_stub.Classify(request, timeout=DEADLINE_S).timing
            took_ms = 1000 * (time.perf_counter() - start)
            overheads.append(took_ms - timing.decode_ms - timing.synthesis_ms - timing.clip_ms)
        return overheads

    async def closed(self, seconds: float, in_flight: int) -> Outcomes:
        """`in_flight` requests at all times."""
        outcomes, cpu_s = Outcomes(), time.process_time()
        start = time.perf_counter()

        async def worker(number: int) -> None:
            while time.perf_counter() < start + seconds:
                await self._timed(number, time.perf_counter(), outcomes)

        await asyncio.gather(*map(worker, range(in_flight)))
        outcomes.wall_s, outcomes.cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
        return outcomes

    async def open(self, per_s: float, seconds: float, random: np.random.Generator) -> Outcomes:
        """Poisson arrivals; rates are over the time until the last answer."""
        outcomes, cpu_s = Outcomes(), time.process_time()
        times = np.cumsum(random.exponential(1 / per_s, int(per_s * seconds * 1.2) + 10))
        start = time.perf_counter()
        tasks = set()
        for number, due in enumerate(times[times < seconds]):
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.ensure_future(self._timed(number, start + due, outcomes))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)
        outcomes.wall_s, outcomes.cpu_s = time.perf_counter() - start, time.process_time() - cpu_s
        return outcomes

    async def _timed(self, number: int, scheduled: float, outcomes: Outcomes) -> None:
        sent = time.perf_counter()
        try:
            await self.one(number)
            outcomes.answered_ms.append(1000 * (time.perf_counter() - scheduled))
        except self._error as error:
            if error.code() is self._full:
                # From its sending: what is asked is how fast the server says no, not how late this process is
                outcomes.refused_ms.append(1000 * (time.perf_counter() - sent))
            else:
                outcomes.failed += 1


def resident_bytes(pid: int) -> int:
    """VmRSS of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmRSS")


async def measure(address: str, pid: int, packets: Sequence[bytes], args: argparse.Namespace) -> dict[str, object]:
    """Everything but start_s. Lines on stderr tell how far it is."""
    load, random, out = Load(address, packets), np.random.default_rng(args.seed), {}
    wanted = {args.only} if args.only else {"lone", "overload", "soak"}
    try:
        load.lone(20)  # warm-up: label vectors, caches, the connection
        if "lone" in wanted:
            overheads = load.lone(200)
            out["lone_overhead_ms_p50"] = round(float(np.median(overheads)), 3)
        if wanted & {"overload", "soak"}:
            # As many in flight as keep the device's batches full, and none refused
            full = await load.closed(args.seconds, 16)
            out["capacity_per_s"] = round(full.per_s, 2)
            _tell(f"capacity {full.per_s:.1f}/s, refused {len(full.refused_ms)}")
        if "overload" in wanted:
            calm = await load.open(LOAD * full.per_s, args.seconds, random)
            before = resident_bytes(pid)
            over = await load.open(OVERLOAD * full.per_s, args.seconds, random)
            out["calm_p99_ms"], out["overload_p99_ms"] = round(calm.p99(), 2), round(over.p99(), 2)
            out["overload_p99_ratio"] = round(over.p99() / calm.p99(), 4)
            out["overload_goodput_ratio"] = round(over.per_s / full.per_s, 4)
            refused = over.refused_ms
            out["reject_ms_p99"] = round(float(np.percentile(refused, 99)), 3) if refused else None
            out["overload"] = {
                "answered": len(over.answered_ms),
                "refused": len(refused),
                "failed": over.failed,
                "calm_refused": len(calm.refused_ms),
                "client_cores": over.client_cores,
                "rss_growth": round(resident_bytes(pid) / before - 1, 5),
            }
            _tell(f"overload: {out['overload']}")
        if "soak" in wanted:
            out["soak_s"] = args.soak
            await load.open(LOAD * full.per_s, args.soak / 10, random)
            before = resident_bytes(pid)
            soak = await load.open(LOAD * full.per_s, args.soak * 9 / 10, random)
            out["soak_rss_growth"] = round(resident_bytes(pid) / before - 1, 5)
            _tell(f"soak: {len(soak.answered_ms)} answered, {len(soak.refused_ms)} refused, {soak.failed} failed")
    finally:
        await load.close()
    return out


def make_packets(bundle_path: Path) -> list[bytes]:
    """Packets of the scikit-image wheel's photographs at the bundle's middle rate."""
    from benchmarks.data.photos import wheel_photos
    from edge.encoder import Encoder, default_rate
    from thinwire.bundle import load_bundle

    bundle = load_bundle(bundle_path)
    encoder, rate = Encoder(bundle), default_rate(bundle)
    return [encoder.encode_image(photo.data, rate).packet.to_bytes() for photo in wheel_photos()]


def _run(args: argparse.Namespace) -> int:
    from benchmarks.results.testbed import describe
    from benchmarks.rig.server_process import serving
    from thinwire.bundle import resolve_bundle

    path = resolve_bundle(args.bundle)
    packets = [] if args.only == "start" else make_packets(path)
    words = ["serve", "--port", "0", "--clip", args.clip, "--bundle", str(path)]
    if args.threads:
        words += ["--threads", str(args.threads)]
    document: dict[str, object] = {"benchmark": "service"}
    with tempfile.TemporaryDirectory() as folder:
        pid_file = Path(folder) / "pid"
        start = time.monotonic()
        with serving([sys.executable, "-c", EXEC, str(pid_file), *words], timeout_s=180) as address:
            document["start_s"] = round(time.monotonic() - start, 3)
            if args.only != "start":
                document |= asyncio.run(measure(address, int(pid_file.read_text()), packets, args))
    document |= {
        "command": shlex.join(["thinwire-bench", *sys.argv[1:]]),
        "seconds": args.seconds,
        "clip": args.clip,
        "bundle": path.name,
        "testbed": describe(),
    }
    line = json.dumps(document, separators=(",", ":"), allow_nan=False)
    if args.json:
        Path(args.json).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0


def _tell(text: str) -> None:
    print(f"thinwire-bench: {text}", file=sys.stderr, flush=True)
