"""The listening gRPC server: transport options, TLS, interceptors, health, a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloud.engine.engine import Engine
from cloud.front.access import BearerAuth, Security, Tokens
from cloud.front.admission import RateLimiter
from cloud.front.limits import ServerOptions
from cloud.front.service import InferenceService
from cloud.search.rpcs import SearchService
from cloud.watch.rpcs import RpcWatch
from thinwire.v1 import inference_pb2_grpc, search_pb2_grpc

if TYPE_CHECKING:
    from cloud.watch.assemble import Watch

__all__ = ["SERVICE", "InferenceService", "Server", "ServerOptions", "background_server"]

SERVICE = "thinwire.v1.InferenceService"
SEARCH_SERVICE = "thinwire.v1.SearchService"


class Server:
    """One listening gRPC server over an engine. Start, then stop; not reusable. All methods run on one event loop."""

    def __init__(
        self,
        engine: Engine,
        address: str,
        options: ServerOptions | None = None,
        security: Security | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`address` is "HOST:PORT"; port 0 takes a free one (see `start`). `watch` is started and stopped with it."""
        self._engine = engine
        self._address = address
        self.options = options or ServerOptions()
        self._security = security or Security()
        self._watch = watch

    async def start(self) -> int:
        """Listens, sets health to SERVING and returns the bound port.

        Raises `OSError` when the address is taken, `BadConfiguration` for what `Security.check` refuses.
        """
        security = self._security
        unix = self._address.startswith("unix:")
        host = self._address if unix else self._address.rpartition(":")[0].strip("[]")
        security.check(host)
        limit = self.options.max_message_bytes
        self._server = grpc.aio.server(
            interceptors=self._interceptors(),
            maximum_concurrent_rpcs=self.options.max_calls,
            options=[
                ("grpc.so_reuseport", 0),  # else a second server on the port starts without an error and takes half
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # edges behind NAT ping to keep the mapping
                *_age_options(self.options),
            ],
        )
        limiter = RateLimiter(security.rate_per_s, security.burst)
        self._service = InferenceService(self._engine, self.options, limiter, security.token_file is not None)
        self._health = health.aio.HealthServicer()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        searcher = self._watch.searcher if self._watch else None
        allowed = security.operators_may_search(host)
        search = SearchService(searcher, allowed, self.options.max_image_file_bytes)
        search_pb2_grpc.add_SearchServiceServicer_to_server(search, self._server)
        if self.options.reflection:
            from grpc_reflection.v1alpha import reflection

            names = (SERVICE, SEARCH_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._credentials = security.credentials()  # kept: gRPC calls into it at every handshake
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: is the port taken?") from error
        if self._watch:
            await self._watch.start()
        await self._server.start()
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    @property
    def counts(self) -> dict[str, int]:
        """Since the start: the engine's, and how often answers were given again."""
        return {**self._engine.counts, "repeated": self._service.repeated}

    async def stop(self, grace_s: float | None = None) -> bool:
        """NOT_SERVING; after the drain delay no new calls; what was accepted is answered within the grace; the engine
        is closed. Says whether everything that had been accepted was answered.
        """
        grace_s = self.options.grace_s if grace_s is None else grace_s
        await self._health.enter_graceful_shutdown()
        if self._watch:
            self._watch.stopping()
        if self.options.drain_delay_s:
            await asyncio.sleep(self.options.drain_delay_s)
        end = time.monotonic() + grace_s
        self._service.stop_streams()
        await self._server.stop(grace_s)
        drained = await asyncio.to_thread(self._engine.close, max(0.0, end - time.monotonic()))
        if self._watch:
            await self._watch.stop()
        return drained

    def _interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """The first sees every call, also those that the last refuses."""
        own = [RpcWatch(self._engine.observers), *(self._watch.interceptors if self._watch else [])]
        tokens, operators = (
            Tokens(path) if path else None for path in (self._security.token_file, self._security.operator_token_file)
        )
        return [*own, BearerAuth(tokens, operators)] if tokens or operators else own


def _age_options(options: ServerOptions) -> list[tuple[str, int]]:
    """Behind a balancer that spreads connections, old ones never reach new replicas; so they are ended now and then."""
    if not options.max_connection_age_s:
        return []
    return [
        ("grpc.max_connection_age_ms", int(options.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(options.max_connection_age_grace_s * 1000)),
    ]


@contextlib.contextmanager
def background_server(
    engine: Engine,
    address: str = "127.0.0.1:0",
    options: ServerOptions | None = None,
    security: Security | None = None,
    watch: Watch | None = None,
):
    """A real server on its own thread, for notebooks, tests and benchmarks: yields "HOST:PORT".

    At the end it stops as `Server.stop` does, which closes the engine too.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="thinwire-server", daemon=True)
    thread.start()
    server = Server(engine, address, options, security, watch)
    try:
        port = asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
