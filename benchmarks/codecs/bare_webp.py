"""WebP without chunk headers, start code and size: 27 bytes of each lossy file, and its padding."""

from __future__ import annotations

from benchmarks.codecs.bare_form import Form, refused
from thinwire.errors import DamagedFrame

# RFC 6386, section 9.1: a key frame is a tag of 3 bytes, this start code, width and height of 2 bytes each
_TAG = 3
_START_CODE = b"\x9d\x01\x2a"


def strip(file: bytes, form: Form) -> bytes:
    """A lossy WebP file of one VP8 chunk → frame tag and partitions. Raises `ForeignEncoder` for any other file."""
    size = int.from_bytes(file[16:20], "little")
    chunk = file[20 : 20 + size]
    bare = chunk[:_TAG] + chunk[_TAG + len(_header(form)) :]
    try:
        if wrap(bare, form) == file:
            return bare
    except DamagedFrame as error:
        raise refused("WebP", form, str(error)) from error
    raise refused("WebP", form)


def wrap(bare: bytes, form: Form) -> bytes:
    """Frame tag and partitions → the whole file. Raises `DamagedFrame` when the tag is no shown key frame's."""
    tag = int.from_bytes(bare[:_TAG], "little")
    partition = tag >> 5  # bytes of the first one
    if len(bare) <= _TAG or tag & 1 or not tag & 0x10 or partition > len(bare) - _TAG:
        raise DamagedFrame("the WebP frame begins with no tag of a shown key frame that fits its length")
    chunk = bare[:_TAG] + _header(form) + bare[_TAG:]
    padded = chunk + bytes(len(chunk) % 2)
    body = b"WEBPVP8 " + len(chunk).to_bytes(4, "little") + padded
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _header(form: Form) -> bytes:
    return _START_CODE + form.width.to_bytes(2, "little") + form.height.to_bytes(2, "little")
