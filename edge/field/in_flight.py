"""What the courier knows of frames under way, and the thread that reads a stream's answers."""

from __future__ import annotations

import queue
from dataclasses import dataclass

import grpc

from edge.errors import ClientClosed
from edge.field.spool import SpooledFrame


@dataclass
class Counts:
    """What happened since the start."""

    answered: int = 0
    failed: int = 0
    sent_frames: int = 0
    sent_bytes: int = 0
    connections: int = 0
    in_time: int = 0
    labels_saved_bytes: int = 0  # that handles took the place of, registering not deducted


@dataclass
class Flight:
    frame: SpooledFrame
    sent_at: float
    packet_bytes: int
    layers: int
    extended: bool = False  # by MoreLayers
    overtaken_at: float | None = None  # when a frame that was sent later had its answer


@dataclass
class Again:
    """When a frame may go again (monotonic seconds) and how often the server failed on it.

    whole: without the offer of further layers, since taking it up failed.
    """

    due: float = 0.0
    failures: int = 0
    whole: bool = False


def frame_id(key: bytes) -> int:
    """The number that a frame has on the wire, the same on every repeat."""
    return int.from_bytes(key[:8], "big")


def read(call: grpc.Call, session: int, events: queue.SimpleQueue) -> None:
    end: BaseException | None = None
    try:
        for response in call:
            events.put((session, "answer", response))
    except grpc.RpcError as error:
        end = error
    except ClientClosed:
        pass
    events.put((session, "end", end))
