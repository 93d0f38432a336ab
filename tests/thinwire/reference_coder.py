"""The range coder of WIRE.md in plain integers: slow, and written from the specification, not from constriction."""

from __future__ import annotations


class ReferenceEncoder:
    """`lower` is kept whole (never cut to 64 bits), so that carries need no care."""

    def __init__(self) -> None:
        self.lower, self.size, self.words = 0, (1 << 64) - 1, 0

    def encode(self, symbol: int, freqs: list[int]) -> None:
        step = self.size >> 24
        self.lower += step * sum(freqs[:symbol])
        self.size = step * freqs[symbol]
        if self.size < 1 << 32:
            self.lower, self.size, self.words = self.lower << 32, self.size << 32, self.words + 1

    def finish(self) -> bytes:
        if self.size == (1 << 64) - 1:
            return b""
        total = 8 + 4 * self.words
        for kept in range(total + 1):
            step = 1 << (8 * (total - kept))
            point = -(-self.lower // step) * step
            if point < self.lower + self.size:
                return point.to_bytes(total, "big").rstrip(b"\0")
        raise ValueError("the interval is empty")


class ReferenceDecoder:
    def __init__(self, payload: bytes) -> None:
        self.payload, self.next = payload + bytes(8), 8
        self.point, self.size = int.from_bytes(self.payload[:8], "big"), (1 << 64) - 1

    def decode(self, freqs: list[int]) -> int:
        """The next symbol; `point` is kept relative to the interval's lower end."""
        step = self.size >> 24
        quantile = self.point // step
        if quantile >= 1 << 24:
            raise ValueError("no encoder writes this")
        symbol = left = 0
        while left + freqs[symbol] <= quantile:
            left += freqs[symbol]
            symbol += 1
        self.point -= step * left
        self.size = step * freqs[symbol]
        if self.size < 1 << 32:
            word = self.payload[self.next : self.next + 4].ljust(4, b"\0")
            self.point, self.size, self.next = (
                self.point << 32 | int.from_bytes(word, "big"),
                self.size << 32,
                self.next + 4,
            )
        return symbol
