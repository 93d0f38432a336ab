"""RPC handlers of the four kinds, made alike: for interceptors, which must answer each kind with its own."""

from __future__ import annotations

from collections.abc import Callable

import grpc

_MAKERS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def with_behaviour(handler: grpc.RpcMethodHandler, wrap: Callable[[Callable], Callable]) -> grpc.RpcMethodHandler:
    """`handler` with its function replaced by `wrap(function)`; kind and serialisers stay.

    A gRPC client that gets a handler of another kind than it called hangs or sees INTERNAL.
    """
    name, make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(wrap(getattr(handler, name)), handler.request_deserializer, handler.response_serializer)
