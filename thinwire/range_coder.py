"""The range coder of WIRE.md in plain Python integers: about a microsecond a symbol, and nothing to install.

`thinwire.entropy` uses it where the compiled coder (native/coder.c) is missing, and for contexts that it does not know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from thinwire.tables import PRECISION

WORD, WHOLE = 1 << 32, 1 << 64


class UnreadablePayload(ValueError):
    """Bytes that the tables cannot read."""


class RangeEncoder:
    """Symbols → one payload. `cum` is a row's sums of frequencies before each column, with 2**24 at the end."""

    def __init__(self) -> None:
        self._lower, self._size = 0, WHOLE - 1  # the last 64 bits of the specification's `lower`
        self._words = bytearray()  # the bits before those

    def encode(self, columns: Iterable[int], cum: Sequence[int]) -> None:
        lower, size = self._lower, self._size
        for column in columns:
            step = size >> PRECISION
            left = cum[column]
            lower += step * left
            size = step * (cum[column + 1] - left)
            if lower >= WHOLE:
                lower -= WHOLE
                self._carry()
            if size < WORD:
                self._words += (lower >> 32).to_bytes(4, "big")
                lower, size = lower << 32 & WHOLE - 1, size << 32
        self._lower, self._size = lower, size

    def finish(self) -> bytes:
        """The number of [lower, lower + size) with most trailing zero bytes (the smallest such), without those."""
        if self._size == WHOLE - 1:  # nothing was coded
            return b""
        for zeros in range(8, -1, -1):
            point = -(-self._lower >> 8 * zeros) << 8 * zeros  # the first multiple of 256**zeros from `lower` on
            if point < self._lower + self._size:
                break
        if point >= WHOLE:
            point -= WHOLE
            self._carry()
        return bytes(self._words + point.to_bytes(8, "big")).rstrip(b"\0")

    def _carry(self) -> None:
        """Adds 1 to the number that the written words are; the specification's `lower` stays below its first word."""
        at = len(self._words) - 1
        while self._words[at] == 0xFF:
            self._words[at] = 0
            at -= 1
        self._words[at] += 1


class RangeDecoder:
    """One payload → its symbols; zeros follow the payload without end."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._point = int.from_bytes(payload[:8].ljust(8, b"\0"), "big")  # relative to the encoder's `lower`
        self._size, self._read = WHOLE - 1, 8

    def decode(self, count: int, cum: Sequence[int]) -> list[int]:
        """The next `count` columns under one row. Raises `UnreadablePayload`."""
        point, size = self._point, self._size
        columns = []
        for _ in range(count):
            step = size >> PRECISION
            quantile = point // step
            if quantile >= 1 << PRECISION:
                raise UnreadablePayload
            column = bisect_right(cum, quantile) - 1
            left = cum[column]
            point -= step * left
            size = step * (cum[column + 1] - left)
            if size < WORD:
                word = self._payload[self._read : self._read + 4].ljust(4, b"\0")
                point, size = point << 32 | int.from_bytes(word, "big"), size << 32
                self._read += 4
            columns.append(column)
        self._point, self._size = point, size
        return columns

    def is_canonical(self) -> bool:
        """Whether the payload is what `RangeEncoder.finish` gives for the columns decoded so far (at least one).

        With p the payload's number, which ends in `zeros` zero bytes after a byte `last`, and point = p - lower: p is
        the smallest multiple of 256**zeros in the interval if point < 256**zeros, and no multiple of the next power is
        in it if the next one, (256 - last) * 256**zeros further on, is not.
        """
        zeros = self._read - len(self._payload)
        if zeros < 0:
            return False
        if not self._payload:
            return True
        last = self._payload[-1]
        unit = 1 << 8 * zeros
        return last > 0 and self._point < unit and self._size - self._point <= (256 - last) * unit
