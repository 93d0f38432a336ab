"""An interceptor that tells observers how RPCs ended, those refused by other interceptors included: put it first."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator

import grpc

from cloud.engine.events import Observers
from cloud.front.handlers import with_behaviour
from thinwire.contract import Reason

KNOWN = ("/thinwire.v1.", "/grpc.health.", "/grpc.reflection.")


class RpcWatch(grpc.aio.ServerInterceptor):
    """Names methods as "Service/Method"; whatever strangers make up is "unknown", so that they cannot fill memory."""

    def __init__(self, observers: Observers) -> None:
        self._observers = observers

    async def intercept_service(self, continuation, details: grpc.HandlerCallDetails):
        handler = await continuation(details)
        if not self._observers:
            return handler
        if handler is None:
            self._observers.rpc("unknown", Reason.UNIMPLEMENTED, 0.0)
            return handler
        method = details.method.rpartition(".")[2] if details.method.startswith(KNOWN) else "unknown"
        return with_behaviour(handler, lambda call: self._watched(call, method))

    def _watched(self, call: Callable, method: str) -> Callable:
        """`call` with its end told. A call that yields its responses stays one that yields."""
        if inspect.isasyncgenfunction(call):

            async def watched_stream(request, context: grpc.aio.ServicerContext):
                with self._timed(method, context):
                    async for response in call(request, context):
                        yield response

            return watched_stream
        if not inspect.iscoroutinefunction(call):
            return call  # of another library, on a thread of its own

        async def watched(request, context: grpc.aio.ServicerContext):
            with self._timed(method, context):
                return await call(request, context)

        return watched

    @contextlib.contextmanager
    def _timed(self, method: str, context: grpc.aio.ServicerContext) -> Iterator[None]:
        start = time.perf_counter()
        code = "CANCELLED"  # what remains when the client leaves: asyncio.CancelledError passes through
        try:
            yield
            code = "OK"
        except Exception:
            code = _name(context.code())
            raise
        finally:
            self._observers.rpc(method, code, time.perf_counter() - start)


def _name(code: grpc.StatusCode | int | None) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {each.value[0]: each.name for each in grpc.StatusCode}
    return names.get(code, "UNKNOWN") if code else "UNKNOWN"
