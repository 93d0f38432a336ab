"""The throughput experiment: what the service answers per second, against the same work called in-process.

On one machine and in one run, because two machines, or one machine at two moments, cannot be compared:

    networks the runner alone on full batches of decoded symbols, in a process of its own: synthesis, CLIP, nothing else
    bare     packets → answers in full batches, one call after the other in that process: decoding, networks, head
    engine   the same packets through Engine.submit: with threads, queue, batching
    served   the same through the gRPC server on loopback, from load generators in a process of their own

All four run the networks in one runtime, ONNX Runtime or PyTorch: the one that the server chose (`runtime` in the
result). Otherwise a ratio would compare two runtimes, not a service with its networks.

Engine and server are one process, which keeps its OpenMP threads for the device thread (see
`cloud.engine.one_shot_executor`); a bare model there would be slower than it is alone. The four take turns, round after
round, and each ratio is the median of the rounds' ratios: what else the machine does then falls on all four. The load
generator encodes nothing (its packets are made before) and keeps `in_flight` requests unanswered, so that the queue
never runs dry; it shares the machine's cores with the service, as its CPU share shows.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from cloud.engine.engine import Engine
from cloud.engine.intake import Intake
from cloud.engine.items import EngineLimits, top_predictions
from cloud.engine.prepared import Prepared
from cloud.engine.text_heads import HeadCache, default_cache_dir
from cloud.front.process_tuning import settle_process
from cloud.front.server import background_server
from cloud.networks.assemble import ReloadableEngine, open_engine
from cloud.networks.choice import Asked, open_runtime
from edge.defaults import DEFAULT_TOP_K
from thinwire.bundle import Bundle, load_bundle
from thinwire.errors import ThinwireError
from thinwire.labels import resolve_templates

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BATCHES_IN_FLIGHT = 3  # one on the device, one being decoded, one on the wire
CALL_TIMEOUT_S = 60.0
PRECISION = "fp32"


class LoadFailed(ThinwireError):
    """The load generator died or was refused; the message says why."""

    reason: ClassVar[str] = "LOAD_FAILED"


@dataclass(frozen=True)
class Rounds:
    """How long is measured. in_flight: unanswered requests that the load generator keeps; None: three full batches."""

    count: int = 5
    seconds: float = 4.0
    in_flight: int | None = None


@dataclass
class Service:
    """One bundle and one CLIP, as model, engine and server at once. Close it by leaving `background_server`."""

    clip: str
    device: str
    engine: ReloadableEngine
    threads: int

    @property
    def batch(self) -> int:
        return self.engine.limits.batch.items

    @classmethod
    def load(cls, clip: str, bundle: Bundle, device: str, threads: int, in_flight: int | None) -> Service:
        """As `thinwire-cloud serve` has them. `threads`: of the networks. The queue is long enough for `in_flight`."""
        settle_process()
        limits = EngineLimits(queue_items=max(EngineLimits.queue_items, 2 * (in_flight or 0)))
        engine = open_engine(clip, [bundle.path], device, threads, limits, precision=PRECISION)
        return cls(clip, engine.heads.clip.device, engine, threads)


def measure(
    service: Service,
    bundle: Bundle,
    packets: Sequence[bytes],
    labels: Sequence[str],
    prompt_set: str,
    rounds: Rounds,
    tick: Callable[[], object],
) -> dict[str, Any]:
    """A point's result. Leaves the service closed."""
    in_flight = rounds.in_flight or BATCHES_IN_FLIGHT * service.batch
    templates = resolve_templates(prompt_set)
    rates: dict[str, list[float]] = {"networks": [], "bare": [], "engine": [], "served": []}
    sizes: collections.Counter[int] = collections.Counter()
    client_cpu: list[float] = []
    model = (service.engine.runtime, service.clip, str(bundle.path), service.device, service.threads)
    asked = (packets, labels, prompt_set)
    with (
        background_server(service.engine) as address,
        _Process("bare model", _bare, *model, *asked, service.batch) as bare,
        _Process("load generator", _generate, address, *asked, in_flight) as load,
    ):
        run_engine = _engine_round(service.engine, packets, labels, templates, in_flight)
        run_engine(0.1)
        bare.round(0.1)
        load.round(0.1)  # warm-up of all: heads, kernels, connections
        for _ in range(rounds.count):
            alone = bare.round(rounds.seconds)
            rates["networks"].append(alone["networks_per_s"])
            rates["bare"].append(alone["images_per_s"])
            rates["engine"].append(run_engine(rounds.seconds))
            served = load.round(rounds.seconds)
            rates["served"].append(served["images_per_s"])
            client_cpu.append(served["client_cpu_share"])
            sizes.update({int(size): count for size, count in served["batch_sizes"].items()})
            tick()
    answered = sum(sizes.values())
    batches = sum(count / size for size, count in sizes.items())
    return {
        **{f"{name}_images_per_s": round(statistics.median(values), 3) for name, values in rates.items()},
        "served_over_bare_ratio": _ratio(rates["served"], rates["bare"]),
        "served_over_networks_ratio": _ratio(rates["served"], rates["networks"]),
        "served_over_engine_ratio": _ratio(rates["served"], rates["engine"]),
        "batch_limit": service.batch,
        "in_flight": in_flight,
        "batch_size_mean": round(answered / batches, 3),
        "batch_histogram": {str(size): round(count / size) for size, count in sorted(sizes.items())},
        "images_answered": answered,
        "client_cpu_share": round(statistics.median(client_cpu), 3),
        "rounds": {name: [round(value, 3) for value in values] for name, values in rates.items()},
        "device": service.device,
        "runtime": service.engine.runtime,
    }


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(above, below)), 4)


def _engine_round(
    engine: Engine, packets: Sequence[bytes], labels: Sequence[str], templates: Sequence[str], in_flight: int
) -> Callable[[float], float]:
    source = itertools.cycle(packets)

    def work(seconds: float) -> float:
        places = threading.Semaphore(in_flight)
        futures = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            places.acquire()
            future = engine.submit(packet=next(source), labels=labels, templates=templates)
            future.add_done_callback(lambda _: places.release())
            futures.append(future)
        for future in futures:
            future.result()
        return len(futures) / (time.perf_counter() - began)

    return work


class _Process:
    """`work(pipe, *arguments)` in a process, round by round. Spawned, never forked: gRPC does not survive a fork."""

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()  # ends the process, which waits for the next round
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def round(self, seconds: float) -> dict[str, Any]:
        try:
            self._pipe.send(seconds)
            result = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise LoadFailed(f"the {self._name}'s process died") from error
        if isinstance(result, str):
            raise LoadFailed(f"the {self._name} was refused: {result}")
        return result


def _bare(
    pipe: Connection,
    runtime: str,
    clip: str,
    bundle_path: str,
    device: str,
    threads: int,
    packets: Sequence[bytes],
    labels: Sequence[str],
    prompt_set: str,
    batch: int,
) -> None:
    """In the bare model's process: for each number of seconds that comes, a round of networks and one of answers."""
    settle_process()
    bundle = load_bundle(bundle_path)
    opened = open_runtime(runtime, Asked(device, threads, PRECISION), [clip], [bundle], [])
    opened.prepare_thread()
    loaded, _ = opened.load_clip(clip)
    net, _ = opened.load_net(bundle, loaded, None, clip)
    intake = Intake([bundle], loaded.image_height, loaded.image_width)
    head = HeadCache(loaded, default_cache_dir()).load(tuple(labels), resolve_templates(prompt_set))

    def prepared(packet: bytes) -> Prepared:
        return replace(intake.prepare(packet, None), net=net, clip=loaded)

    decoded = itertools.cycle(list(map(prepared, packets)))
    source = itertools.cycle(packets)

    def networks() -> None:
        opened.runner.run(list(itertools.islice(decoded, batch)))

    def answers() -> None:
        inputs = [prepared(packet) for packet in itertools.islice(source, batch)]
        top_predictions(head, opened.runner.run(inputs).embeddings, [DEFAULT_TOP_K] * batch)

    while (seconds := _asked(pipe)) is not None:
        rates = [batch * _per_s(work, seconds) for work in (networks, answers)]
        pipe.send(dict(zip(("networks_per_s", "images_per_s"), rates, strict=True)))


def _per_s(work: Callable[[], None], seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work()
        done += 1
    return done / (time.perf_counter() - began)


def _asked(pipe: Connection) -> float | None:
    """The seconds of the next round; None when there is none."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _generate(
    pipe: Connection, address: str, packets: Sequence[bytes], labels: Sequence[str], prompt_set: str, in_flight: int
) -> None:
    """In the load generator's process: one round for each number of seconds that comes, until the pipe is closed."""
    asyncio.run(_rounds(pipe, address, packets, labels, prompt_set, in_flight))


async def _rounds(
    pipe: Connection, address: str, packets: Sequence[bytes], labels: Sequence[str], prompt_set: str, in_flight: int
) -> None:
    import grpc

    from thinwire.v1 import inference_pb2 as pb
    from thinwire.v1 import inference_pb2_grpc

    requests = itertools.cycle(
        pb.ClassifyRequest(
            image=pb.ImageInput(packet=packet), labels=labels, prompt_set=prompt_set, top_k=DEFAULT_TOP_K
        )
        for packet in packets
    )
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        classify = inference_pb2_grpc.InferenceServiceStub(channel).Classify
        while True:
            if (seconds := await asyncio.to_thread(_asked, pipe)) is None:
                return
            sizes: collections.Counter[int] = collections.Counter()
            cpu_s, began = time.process_time(), time.perf_counter()

            async def ask(end: float, sizes: collections.Counter[int] = sizes) -> None:
                while time.perf_counter() < end:
                    reply = await classify(next(requests), timeout=CALL_TIMEOUT_S)
                    sizes[reply.timing.batch_size] += 1

            try:
                await asyncio.gather(*(ask(began + seconds) for _ in range(in_flight)))
            except grpc.RpcError as error:
                pipe.send(f"{error.code().name}: {error.details()}")
                return
            took_s = time.perf_counter() - began
            pipe.send(
                {
                    "images_per_s": sizes.total() / took_s,
                    "client_cpu_share": (time.process_time() - cpu_s) / took_s,
                    "batch_sizes": dict(sizes),
                }
            )
