"""One replica of `cloud.ray_app`: the engine with its unary RPCs, and the settings of replicas. Needs no Ray."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import grpc

from cloud.config import words
from cloud.engine.batching import BatchLimits
from cloud.engine.items import EngineLimits
from cloud.errors import BadConfiguration
from cloud.front.info import server_info
from cloud.front.limits import ServerOptions
from cloud.front.service import InferenceService
from thinwire.v1 import inference_pb2 as pb

log = logging.getLogger("ray.serve")  # the one whose records Serve keeps
T = TypeVar("T")


@dataclass(frozen=True)
class RaySettings:
    """What a replica is and how many there are.

    clip, bundles, adapters, decoders, runtime, precision, clip_backend, synthesis_backend, model_mb, threads, batch: as
        the flags of `thinwire-cloud serve`, with the same defaults: a replica loads what that server would, and so
        gives its answers. Folders must lie at the same path on every node.
    gpus: of one replica; 1 gives each its own, 0.5 two to a GPU.
    target_ongoing: calls under way that autoscaling aims at for each replica: about two device batches keep a device
        busy. max_replicas above min_replicas switches autoscaling on.
    """

    clip: tuple[str, ...] = ("clip-lite",)
    bundles: tuple[str, ...] | None = None
    adapters: tuple[str, ...] | None = None
    decoders: tuple[str, ...] | None = None
    runtime: str = "auto"
    precision: str = "auto"
    clip_backend: str = "auto"
    synthesis_backend: str = "auto"
    model_mb: int | None = None
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

    @classmethod
    def of_words(cls, given: dict[str, Any]) -> RaySettings:
        """The settings of `serve run cloud.ray_app:build NAME=VALUE ...`: lists have commas. A YAML file's values are
        taken as they are. Raises `BadConfiguration`, which names the setting."""
        kinds = {field.name: field.type for field in fields(cls)}
        values = {}
        for name, value in given.items():
            if name not in kinds:
                raise BadConfiguration(f"{name}: replicas have no such setting; known: {', '.join(kinds)}")
            try:
                values[name] = _read(kinds[name], value)
            except ValueError as error:
                raise BadConfiguration(f"{name}: {error}") from None
        return cls(**values)


def _read(kind: str, value: Any) -> Any:
    """kind: of a field, as `RaySettings` writes it."""
    if kind.startswith("tuple"):
        return tuple(words(value) if isinstance(value, str) else value)
    for number in (int, float):
        if kind.startswith(number.__name__):
            return number(value)
    return str(value)


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
            given.clip,
            given.bundles,
            "cuda" if given.gpus else "cpu",
            given.threads,
            limits,
            model_bytes=given.model_mb << 20 if given.model_mb else None,
            precision=given.precision,
            adapters=given.adapters,
            decoders=given.decoders,
            synthesis_backend=given.synthesis_backend,
            clip_backend=given.clip_backend,
            runtime=given.runtime,
        )
        for line in self._engine.lines():
            log.info(line)
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
