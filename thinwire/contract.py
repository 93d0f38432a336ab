"""What edge and cloud must spell alike beside packets and protobuf: metadata keys, error reasons, names, defaults."""

from __future__ import annotations

import re
from enum import StrEnum

TIME_KEY = "thinwire-time"
"""Initial metadata of GetServerInfo: the server's time, seconds since 1970."""

SPOOL_KEY = "thinwire-spool"
"""Metadata of a call: the id of the spool whose frames it brings, so that a repeat is known as one."""

MAX_SPOOL_CHARS = 64

DEVICE_KEY = "thinwire-device"
"""Metadata of a call: the name under which the device's answers are shown, kept and found again."""

DEVICE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
DEVICE_ID_RULE = "1 to 64 of A-Z a-z 0-9 . _ : -"

DEFAULT_TOP_K = 5
DEFAULT_SERVER = "127.0.0.1:50051"

_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")


class Reason(StrEnum):
    """`reason` of google.rpc.ErrorInfo, as one end sends it and the other acts on it."""

    CANNOT_DECODE = "CANNOT_DECODE"
    CLIP_MISMATCH = "CLIP_MISMATCH"
    CLIP_UNAVAILABLE = "CLIP_UNAVAILABLE"
    DEADLINE = "DEADLINE"
    INFERENCE_FAILED = "INFERENCE_FAILED"
    INVALID_REQUEST = "INVALID_REQUEST"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUEUE_FULL = "QUEUE_FULL"
    RATE_LIMITED = "RATE_LIMITED"
    SEARCH_OFF = "SEARCH_OFF"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    STORE_FAILED = "STORE_FAILED"
    TOO_LARGE = "TOO_LARGE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    UNIMPLEMENTED = "UNIMPLEMENTED"  # of gRPC itself: the server has no such RPC
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"  # of gRPC itself: no ErrorInfo came with it
    UNKNOWN_FRAME = "UNKNOWN_FRAME"
    UNKNOWN_LABEL_SET = "UNKNOWN_LABEL_SET"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant by `host`: a name or an IP address, without a port, `[...]` allowed; or
    unix:PATH.

    >>> is_loopback("[::1]"), is_loopback("127.0.0.1"), is_loopback("127.0.0.1.example.com")
    (True, True, False)
    """
    return host.startswith("unix:") or bool(_LOOPBACK.fullmatch(host.strip("[]")))


def is_device_id(name: object) -> bool:
    return isinstance(name, str) and bool(DEVICE_ID.fullmatch(name))
