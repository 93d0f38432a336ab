"""What the edge reads from gRPC's status details, against messages made by Google's own classes."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from edge.line.error_info import KEY, error_reason


class Error(grpc.RpcError):
    """A failed call with the given trailers."""

    def __init__(self, trailers, code=grpc.StatusCode.RESOURCE_EXHAUSTED) -> None:
        self._trailers, self._code = trailers, code

    def trailing_metadata(self):
        return self._trailers

    def code(self):
        return self._code


def details(*messages, code: int = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]) -> bytes:
    status = status_pb2.Status(code=code, message="full")
    for message in messages:
        status.details.add().Pack(message)
    return status.SerializeToString()


INFO = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="thinwire", metadata={"a": "b"})
RETRY = error_details_pb2.RetryInfo()
RETRY.retry_delay.FromMilliseconds(1500)


@pytest.mark.parametrize("messages", [(INFO,), (RETRY, INFO), (INFO, error_details_pb2.ErrorInfo(reason="OTHER"))])
def test_reads_googles_own_messages(messages):
    assert error_reason(Error([("x", "y"), (KEY, details(*messages))])) == "QUEUE_FULL"


@pytest.mark.parametrize(
    "trailers",
    [
        None,
        (),
        [("x", "y")],
        [(KEY, b"")],
        [(KEY, b"\xff\xff\xff")],  # no message at all
        [(KEY, details(RETRY))],  # a message without a reason
        [(KEY, details(INFO, code=5))],  # contradicts the code of the call
        [(KEY, details(INFO)[:-3])],  # cut
    ],
)
def test_no_reason_where_there_is_none(trailers):
    assert error_reason(Error(trailers)) == ""


def test_an_error_without_a_call():
    assert error_reason(grpc.RpcError()) == ""
