"""Extra `ray`: the same engine as a Ray Serve application behind Serve's gRPC ingress.

    serve run --address auto cloud.ray_app:build                  # or from Python: start(RaySettings(...))

Unary RPCs alone: Serve's ingress has no bidirectional streams, no TLS and no tokens, so put it behind something that
has (docs/scaling.md). Callers' deadlines do not reach replicas; Serve's request timeout holds in their place.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import TypeVar

import grpc
from ray import serve
from ray.serve.config import AutoscalingConfig, gRPCOptions

from cloud.engine.batching import BatchLimits
from cloud.engine.items import EngineLimits
from cloud.front.info import server_info
from cloud.front.limits import ServerOptions
from cloud.front.service import InferenceService
from thinwire.v1 import inference_pb2 as pb

SERVICER = "thinwire.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"
APPLICATION = "thinwire"
T = TypeVar("T")


@dataclass(frozen=True)
class RaySettings:
    """What a replica is and how many there are. gpus: of one replica; 1 gives each its own, 0.5 two to a GPU.

    target_ongoing: calls under way that autoscaling aims at for each replica: about two device batches keep a device
    busy. max_replicas above min_replicas switches autoscaling on.
    """

    clip: tuple[str, ...] = ("clip-lite",)
    bundles: tuple[str, ...] | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    batch: int | None = None
    min_replicas: int = 1
    max_replicas: int = 4
    target_ongoing: float = 16.0
    max_ongoing: int = 128
    port: int = 9000
    request_timeout_s: float = 30.0


class Aborted(Exception):
    """Ends a call whose status stands in the context already."""


class RayContext:
    """What `InferenceService` asks of a call, over Serve's context."""

    def __init__(self, inner) -> None:
        self._inner = inner

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple = ()) -> None:
        self._inner.set_code(code)
        self._inner.set_details(details)
        self._inner.set_trailing_metadata(list(trailing_metadata))
        raise Aborted(details)

    async def send_initial_metadata(self, metadata: tuple) -> None:
        """Serve sends none: the edge's doctor is not told this machine's time."""

    def time_remaining(self) -> None:
        """Serve does not tell."""
        return None

    def auth_context(self) -> dict:
        return {}  # TLS ended elsewhere

    def invocation_metadata(self) -> tuple:
        return tuple(self._inner.invocation_metadata() or ())

    def peer(self) -> str:
        return self._inner.peer() or "unknown"


class Replica:
    """One engine with its unary RPCs. The whole of `InferenceService` but ClassifyStream."""

    def __init__(self, settings: dict) -> None:
        from cloud.front.process_tuning import settle_process
        from cloud.networks.assemble import open_engine

        settle_process()
        given = RaySettings(**settings)
        limits = EngineLimits(
            queue_items=given.max_ongoing,
            batch=BatchLimits(items=given.batch) if given.batch else None,
            default_deadline_s=given.request_timeout_s,
        )
        self._engine = open_engine(
            list(given.clip),
            list(given.bundles) if given.bundles is not None else None,
            "cuda" if given.gpus else "cpu",
            given.threads,
            limits,
        )
        self._service = InferenceService(self._engine, ServerOptions())

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        server_info(self._engine, self._service.options)

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.close(5)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, grpc_context):
        return await _status_kept(
            self._service.GetServerInfo(request, RayContext(grpc_context)), pb.GetServerInfoResponse()
        )

    async def Classify(self, request: pb.ClassifyRequest, grpc_context):
        return await _status_kept(self._service.Classify(request, RayContext(grpc_context)), pb.ClassifyResponse())

    async def Embed(self, request: pb.EmbedRequest, grpc_context):
        return await _status_kept(self._service.Embed(request, RayContext(grpc_context)), pb.EmbedResponse())

    async def EncodeText(self, request: pb.EncodeTextRequest, grpc_context):
        return await _status_kept(self._service.EncodeText(request, RayContext(grpc_context)), pb.EncodeTextResponse())

    async def Rank(self, request: pb.RankRequest, grpc_context):
        return await _status_kept(self._service.Rank(request, RayContext(grpc_context)), pb.RankResponse())

    async def Decode(self, request: pb.DecodeRequest, grpc_context):
        return await _status_kept(self._service.Decode(request, RayContext(grpc_context)), pb.DecodeResponse())


async def _status_kept(answer: Awaitable[T], nothing: T) -> T:
    """The awaited answer; of an aborted call `nothing`.

    Serve sends the whole status of calls that return, and drops the details of those that raise.
    """
    try:
        return await answer
    except Aborted:
        return nothing


def application(settings: RaySettings):
    """The Serve application of `settings`, not yet deployed."""
    scaling = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.min_replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=settings.target_ongoing,
                upscale_delay_s=10,  # loading a model takes about that long
                downscale_delay_s=300,
            )
        }
    deployed = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=settings.max_ongoing,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=20,
        **scaling,
    )
    return deployed.bind(asdict(settings))


def build(words: dict[str, str]):
    """For `serve run cloud.ray_app:build min_replicas=2 gpus=1`."""
    defaults = asdict(RaySettings())
    read = {name: type(default) for name, default in defaults.items() if isinstance(default, int | float)}
    values = {name: read[name](text) if name in read else tuple(text.split(",")) for name, text in words.items()}
    return application(RaySettings(**values))


def start(settings: RaySettings) -> str:
    """Deploys on the Ray that is initialised, waits until it answers, returns "127.0.0.1:PORT" of this node's ingress.

    Stop with `serve.delete(APPLICATION)`, which lets calls finish; `serve.shutdown()` cuts them.
    """
    options = gRPCOptions(
        port=settings.port, grpc_servicer_functions=[SERVICER], request_timeout_s=settings.request_timeout_s
    )
    serve.start(grpc_options=options, http_options={"location": "EveryNode", "port": 0})
    serve.run(application(settings), name=APPLICATION, route_prefix="/thinwire")
    return f"127.0.0.1:{settings.port}"
