"""What the gRPC front accepts; `GetServerInfo` tells clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """Limits of the front. Security is set apart, in `cloud.front.access.Security`."""

    max_image_file_bytes: int = 16 << 20
    stream_window: int = 32  # frames of one stream that may be unanswered at a time
    max_calls: int = 4096  # calls (a stream is one) open at a time; more get RESOURCE_EXHAUSTED from gRPC itself
    max_texts: int = 1024
    max_rank_images: int = 64
    max_label_sets: int = 1024
    label_set_bytes: int = 64 << 20
    repeat_bytes: int = 16 << 20  # answers kept for devices that ask again (`cloud.front.repeats`); 0 keeps none
    repeat_age_s: float = 86400.0
    evidence_bytes: int = 16 << 20  # of frames that wait for more of themselves (`cloud.front.evidence`)
    evidence_age_s: float = 60.0
    confidence: float = 0.97  # of progressive answers whose request names none
    grace_s: float = 20.0  # how long a stopping server waits for what it accepted
    drain_delay_s: float = 0.0  # NOT_SERVING, but still accepting: for balancers that take a while to look
    reflection: bool = False
    max_connection_age_s: float = 0.0  # connections older than this are asked to come again; 0: never
    max_connection_age_grace_s: float = 60.0  # then calls and streams under way may last this much longer

    @property
    def max_message_bytes(self) -> int:
        """The largest image file with the longest label list beside it. gRPC refuses more before it is read."""
        return self.max_image_file_bytes + (4 << 20)
