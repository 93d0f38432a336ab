"""Tables and a progress bar for people. By hand, because rich and what it brings are 7 MB: much on a device."""

from __future__ import annotations

import shutil
import time
import unicodedata
from collections.abc import Sequence
from typing import TextIO

from thinwire.text import shown, takes, without_secrets

BOLD, RED, PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"
CLEAR_LINE = "\r\x1b[K"
BAR_CELLS = 30
REDRAW_S = 0.1


def cells(text: str) -> int:
    """Terminal cells that `text` takes: two for wide (East Asian) characters, none for combining ones.

    >>> cells("cat"), cells("猫"), cells("e\\u0301")
    (3, 2, 1)
    """
    return sum(
        0 if unicodedata.category(char) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def shortened(text: str, width: int) -> str:
    """The end of `text` in at most `width` cells; of a path that is what tells it apart.

    >>> shortened("holiday/beach/1.jpg", 10)
    '…ach/1.jpg'
    """
    if cells(text) <= width:
        return text
    while text and cells(text) > width - 1:
        text = text[1:]
    return "…" + text


def table(heads: Sequence[str], rows: Sequence[Sequence[Sequence[str]]], left: int, stream: TextIO) -> str:
    """Rows of cells, each a list of lines, under bold heads. The first `left` columns are left-aligned, others right.

    On a terminal the first column is shortened to what fits; in files and pipes nothing is.
    """
    widths = [
        max(cells(head), *(cells(line) for row in rows for line in row[place])) for place, head in enumerate(heads)
    ]
    if stream.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * (len(widths) - 1)
        widths[0] = max(min(widths[0], room), cells(heads[0]), 12)

    def line(texts: Sequence[str]) -> str:
        padded = []
        for place, (text, width) in enumerate(zip(texts, widths)):
            text = shortened(text, width) if place == 0 else text
            fill = " " * (width - cells(text))
            padded.append(text + fill if place < left else fill + text)
        return "  ".join(padded).rstrip()

    head = line(heads)
    rule = "─" if takes(stream, "─") else "-"
    lines = [f"{BOLD}{head}{PLAIN}" if stream.isatty() else head, "  ".join(rule * width for width in widths)]
    for row in rows:
        for place in range(max(map(len, row))):
            lines.append(line([cell[place] if place < len(cell) else "" for cell in row]))
    return "\n".join(lines)


class ProgressBar:
    """A bar on a terminal, nothing elsewhere. `say` writes a line above it. Use as a context manager."""

    def __init__(self, total: int, stream: TextIO, what: str) -> None:
        self._total, self._stream, self._what = total, stream, what
        self._on = total > 1 and stream.isatty()
        self._done = 0
        self._started, self._drawn = time.monotonic(), float("-inf")

    def __enter__(self) -> ProgressBar:
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def advance(self) -> None:
        self._done += 1
        self._draw()

    def say(self, text: str) -> None:
        """One line of trouble, in red on a terminal."""
        self._clear()
        text = shown(without_secrets(text))
        print(f"{RED}{text}{PLAIN}" if self._stream.isatty() else text, file=self._stream, flush=True)
        self._drawn = float("-inf")
        self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if not self._on or now - self._drawn < REDRAW_S:
            return
        self._drawn = now
        full = BAR_CELLS * self._done // self._total
        left = ""
        if self._done:
            seconds = round((now - self._started) * (self._total - self._done) / self._done)
            left = f"  {seconds // 60}:{seconds % 60:02} left"
        on, off = "█░" if takes(self._stream, "█░") else "#."
        bar = on * full + off * (BAR_CELLS - full)
        self._stream.write(f"{CLEAR_LINE}{self._what} {bar} {self._done}/{self._total}{left}")
        self._stream.flush()

    def _clear(self) -> None:
        if self._on:
            self._stream.write(CLEAR_LINE)
            self._stream.flush()
