"""Label lists that come in pieces: kept until they are whole, whichever connection brings the rest."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import OrderedDict

from google.protobuf.message import DecodeError

from cloud.errors import InvalidRequest
from thinwire.labels import MAX_LABEL_CHARS, MAX_LABELS
from thinwire.v1 import inference_pb2 as pb

MAX_PART_BYTES = 64 << 10
MAX_UPLOAD_BYTES = 4 << 20  # compressed
MAX_TEXT_BYTES = 4 * MAX_LABELS * MAX_LABEL_CHARS  # UTF-8 of the longest list that is allowed
DIGEST_BYTES = 32


class LabelParts:
    """Pieces by the hash of their whole. The least recently touched go when all together are too many bytes.

    Hostile input: nothing is unpacked before the hash of the whole is right, and never to more than the longest list.
    Thread-safe.
    """

    def __init__(self, max_bytes: int = 4 * MAX_UPLOAD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._uploads: OrderedDict[bytes, bytearray] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, part: pb.RegisterLabelsPartRequest) -> tuple[int, pb.RegisterLabelsRequest | None]:
        """Keeps a piece; returns how many bytes are held from the beginning on, and the request once it is whole.

        Raises `InvalidRequest` for pieces that are none, and for a whole that does not have its hash (it is dropped).
        """
        if len(part.upload) != DIGEST_BYTES or not 0 < part.total_bytes <= MAX_UPLOAD_BYTES:
            raise InvalidRequest(
                f"an upload of labels has a SHA-256 of {DIGEST_BYTES} bytes and 1 to {MAX_UPLOAD_BYTES} bytes in all"
            )
        if len(part.data) > MAX_PART_BYTES or part.offset + len(part.data) > part.total_bytes:
            raise InvalidRequest(f"a piece has at most {MAX_PART_BYTES} bytes, and lies within the whole")
        with self._lock:
            held = self._uploads.get(part.upload, bytearray())
            if part.offset <= len(held) < part.offset + len(part.data):
                held += part.data[len(held) - part.offset :]
            if held:
                self._uploads[part.upload] = held
                self._uploads.move_to_end(part.upload)
            while sum(map(len, self._uploads.values())) > self._max_bytes and len(self._uploads) > 1:
                self._uploads.popitem(last=False)
            if len(held) < part.total_bytes:
                return len(held), None
            # Kept until it is pushed out: a client whose answer was lost asks again with one short message
            if hashlib.sha256(held).digest() != part.upload:
                del self._uploads[part.upload]
                raise InvalidRequest("the pieces together do not have the hash that they came under: send them again")
            whole = bytes(held)
        return len(whole), _unpacked(whole)


def _unpacked(data: bytes) -> pb.RegisterLabelsRequest:
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, MAX_TEXT_BYTES)
        if not unpacker.eof:
            raise InvalidRequest("the pieces together are no whole zlib stream, or hold more labels than are allowed")
        return pb.RegisterLabelsRequest.FromString(text)
    except (zlib.error, DecodeError) as error:
        raise InvalidRequest(f"the pieces together are no compressed RegisterLabelsRequest ({error})") from error
