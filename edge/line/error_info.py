"""The reason in a refusal: `google.rpc.ErrorInfo` inside gRPC's status details.

Declared here by the few fields that are read, because grpcio-status and googleapis-common-protos would be 0.8 MB more
on a device. The field numbers are those of google/rpc/status.proto and error_details.proto.
"""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

KEY = "grpc-status-details-bin"
ERROR_INFO = "google.rpc.ErrorInfo"
_PACKAGE = "thinwire.edge"


def _declare() -> tuple[type, type]:
    """Message classes of Status and ErrorInfo, in a pool of their own: the real ones may be loaded beside them."""
    kinds = descriptor_pb2.FieldDescriptorProto

    def field(name: str, number: int, kind: int, **more) -> dict:
        return {"name": name, "number": number, "type": kind, "label": kinds.LABEL_OPTIONAL, **more}

    many = {"label": kinds.LABEL_REPEATED, "type_name": f".{_PACKAGE}.Any"}
    messages = {
        "Any": [field("type_url", 1, kinds.TYPE_STRING), field("value", 2, kinds.TYPE_BYTES)],
        "Status": [field("code", 1, kinds.TYPE_INT32), field("details", 3, kinds.TYPE_MESSAGE, **many)],
        "ErrorInfo": [field("reason", 1, kinds.TYPE_STRING)],
    }
    pool = descriptor_pool.DescriptorPool()
    pool.Add(
        descriptor_pb2.FileDescriptorProto(
            name="thinwire/edge/details.proto",
            package=_PACKAGE,
            syntax="proto3",
            message_type=[{"name": name, "field": fields} for name, fields in messages.items()],
        )
    )
    names = ("Status", "ErrorInfo")
    return tuple(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names)


_Status, _ErrorInfo = _declare()


def error_reason(error: grpc.RpcError) -> str:
    """The ErrorInfo reason in the status details; "" where there is none, or where they contradict the status."""
    try:
        trailers = dict(tuple(pair) for pair in error.trailing_metadata() or ())  # asyncio's metadata is not a mapping
        status = _Status.FromString(trailers.get(KEY, b""))
        infos = [each for each in status.details if each.type_url.rpartition("/")[2] == ERROR_INFO]
        reasons = [_ErrorInfo.FromString(each.value).reason for each in infos]
        agrees = status.code == error.code().value[0]
    except (AttributeError, DecodeError):  # no call behind the error; no status in the trailer
        return ""
    return reasons[0] if reasons and agrees else ""
