"""An interceptor that tells observers how RPCs ended, those refused by other interceptors included: put it first."""

from __future__ import annotations

import time

import grpc

from cloud.engine.events import Observers
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
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._watched(handler.unary_unary, method), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_stream and method.endswith("/ClassifyStream"):  # one that reads and writes by its context
            return grpc.stream_stream_rpc_method_handler(
                self._watched(handler.stream_stream, method), handler.request_deserializer, handler.response_serializer
            )
        return handler

    def _watched(self, call, method: str):
        async def watched(request, context: grpc.aio.ServicerContext):
            start = time.perf_counter()
            code = "CANCELLED"  # what remains when the client leaves: asyncio.CancelledError passes through
            try:
                response = await call(request, context)
                code = "OK"
                return response
            except Exception:
                code = _name(context.code())
                raise
            finally:
                self._observers.rpc(method, code, time.perf_counter() - start)

        return watched


def _name(code: grpc.StatusCode | int | None) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    names = {each.value[0]: each.name for each in grpc.StatusCode}
    return names.get(code, "UNKNOWN") if code else "UNKNOWN"
