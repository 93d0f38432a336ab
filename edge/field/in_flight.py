"""What the courier knows of frames under way, and the thread that reads a stream's answers."""

from __future__ import annotations

import queue
from dataclasses import dataclass

import grpc

from edge.errors import ClientClosed
from edge.field.spool import SpooledFrame
from thinwire.v1 import inference_pb2 as pb


@dataclass(frozen=True, eq=False)
class Wanted:
    """A packet that the server asked for: of this bundle, of so many layers (or that rung)."""

    model_id: bytes
    layers: int
    so_far: pb.ClassifyResponse


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
    asked: int = 0  # frames of which the server asked for another bundle's packet
    followed: int = 0  # of these, packets sent; the others were withheld by caps, budget or deadline
    fused: int = 0  # answers that were made from several packets
    packets_saved_bytes: int = 0  # of packets that were offered, and not needed or not sent


@dataclass
class Flight:
    frame: SpooledFrame
    sent_at: float
    packet_bytes: int
    layers: int
    extended: bool = False  # by MoreLayers
    overtaken_at: float | None = None  # when a frame that was sent later had its answer
    offered: bool = False  # packets of other bundles
    so_far: pb.ClassifyResponse | None = None  # the answer from the first packet, where a further one was asked for
    wanted: Wanted | None = None  # asked for, and waiting for the cap on kbit/s


@dataclass
class Again:
    """When a frame may go again (monotonic seconds) and how often the server failed on it.

    whole: without the offer of further layers, since taking it up failed. wanted: the server has the first packet and
    asked for another one, with the answer so far.
    """

    due: float = 0.0
    failures: int = 0
    whole: bool = False
    wanted: Wanted | None = None


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
