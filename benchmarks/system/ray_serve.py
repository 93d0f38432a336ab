"""Two Ray Serve replicas while one is killed, and what Serve's ingress costs: `thinwire-bench ray`.

lost: requests that had no answer after retries (target 0). retried: tries beyond the first. ray_ms_p50, plain_ms_p50:
round trip of a lone request through Serve's gRPC proxy and to the plain server, one after the other in one run;
overhead_ms_p50 is their difference, both with a replica's one thread. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRIES, PAUSE_S = 8, 0.5


def add_commands(commands) -> None:
    """Registers `ray`, which sets `run`."""
    parser = commands.add_parser(
        "ray",
        help="Ray Serve: kill a replica under load; overhead of its ingress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default="layered", metavar="NAME|PATH")
    parser.add_argument("--clip", default="clip-lite")
    parser.add_argument("--requests", type=int, default=400, help="sent while a replica dies (default: 400)")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--port", type=int, default=9000, help="requests to measure Serve's ingress with")
    parser.set_defaults(run=_run)


class Caller:
    """Blocking calls with retries of what a dying replica makes of a call."""

    def __init__(self, address: str, request) -> None:
        import grpc

        from thinwire.v1 import inference_pb2_grpc

        self._grpc, self._request = grpc, request
        codes = grpc.StatusCode
        self._again = {codes.UNAVAILABLE, codes.INTERNAL, codes.UNKNOWN, codes.RESOURCE_EXHAUSTED, codes.CANCELLED}
        self.channel = grpc.insecure_channel(address)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.retried = 0

    def once(self) -> float:
        """Milliseconds of one call. Raises `grpc.RpcError`."""
        start = time.perf_counter()
        self._stub.Classify(self._request, timeout=30)
        return 1000 * (time.perf_counter() - start)

    def persistent(self) -> bool:
        """Whether an answer came, after `TRIES` at most."""
        for attempt in range(TRIES):
            try:
                self.once()
                return True
            except self._grpc.RpcError as error:
                if error.code() not in self._again:
                    return False
                self.retried += 1
                time.sleep(PAUSE_S * (attempt + 1))
        return False


def replica_actors() -> list[str]:
    """Names of the live replicas' actors, in the namespace `serve`. Needs no dashboard."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in named if each["name"].startswith("SERVE_REPLICA::")]


def kill_one_under_load(address: str, request, count: int, in_flight: int) -> dict[str, int]:
    """Sends `count` requests, kills a replica when a third are answered."""
    import ray

    done, lost, killed = [0], [0], []
    lock = threading.Lock()
    callers = [Caller(address, request) for _ in range(in_flight)]
    numbers = iter(range(count))

    def work(caller: Caller) -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            answered = caller.persistent()
            with lock:
                done[0] += answered
                lost[0] += not answered
                victim = replica_actors()[0] if done[0] >= count // 3 and not killed else None
                if victim:
                    killed.append(victim)
            if victim:
                ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)

    threads = [threading.Thread(target=work, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for caller in callers:
        caller.channel.close()
    return {
        "answered": done[0],
        "lost": lost[0],
        "retried": sum(caller.retried for caller in callers),
        "killed": len(killed),
    }


def lone_ms_p50(address: str, request, count: int) -> float:
    import numpy as np

    caller = Caller(address, request)
    times = [caller.once() for _ in range(count + 5)][5:]
    caller.channel.close()
    return float(np.median(times))


def _run(args: argparse.Namespace) -> int:
    import ray
    from ray import serve

    from benchmarks.results.testbed import describe
    from benchmarks.rig.server_process import running_service
    from benchmarks.system.service_load import LABELS, make_packets
    from cloud.ray_app import APPLICATION, RaySettings, start
    from thinwire.bundle import resolve_bundle
    from thinwire.v1 import inference_pb2 as pb

    path = resolve_bundle(args.bundle)
    packet = make_packets(path)[0]
    request = pb.ClassifyRequest(image=pb.ImageInput(packet=packet), labels=LABELS, prompt_set="1")
    variables = {"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=variables, log_to_driver=False)
    try:
        settings = RaySettings((args.clip,), (str(path),), min_replicas=2, max_replicas=2, cpus=0.9, port=args.port)
        address = start(settings)
        ray_ms = lone_ms_p50(address, request, 50)
        outcome = kill_one_under_load(address, request, args.requests, args.in_flight)
        serve.delete(APPLICATION)
    finally:
        serve.shutdown()
        ray.shutdown()
    with running_service(args.clip, path, threads=settings.threads) as plain:
        plain_ms = lone_ms_p50(plain, request, 50)
    document = {
        "benchmark": "ray",
        **outcome,
        "requests": args.requests,
        "ray_ms_p50": round(ray_ms, 3),
        "plain_ms_p50": round(plain_ms, 3),
        "overhead_ms_p50": round(ray_ms - plain_ms, 3),
        "ray": ray.__version__,
        "command": shlex.join(["thinwire-bench", *sys.argv[1:]]),
        "testbed": describe(),
    }
    print(json.dumps(document, separators=(",", ":"), allow_nan=False), flush=True)
    return 0
