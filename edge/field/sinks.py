"""Where results go: JSONL and CSV files, a webhook, stdout (MQTT: `edge.field.mqtt`). Each result once, whatever dies.

A result enters the spool's outbox in the transaction that takes its frame out. A file sink then appends lines, fsyncs
the file, and only then tells the spool how far it is. A process killed between the two leaves lines behind that the
spool does not know of; the next one finds them by comparing the file's tail with what it is about to write, byte by
byte, and goes on after them: exactly once. A webhook cannot be asked what it holds: a repeat is possible after a crash
or a lost reply, and carries the same `Idempotency-Key`. stdout is at least once too.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from edge.errors import ConnectionOptionsError, OutputError, described
from edge.field.refused_results import Refusals, ResultRefused, deliver_each
from edge.field.spool import Spool
from edge.line.web import WebError, checked, open_url, read_reply
from thinwire.errors import ThinwireError
from thinwire.files import other_kind
from thinwire.text import safe_text, shown_address, takes, without_secrets

CSV_FIELDS = ("key", "final", "ok", "source", "captured_at", "label", "probability", "similarity", "answered_by")
CSV_FIELDS += ("layers", "packet_bytes", "error")
WEBHOOK_TIMEOUT_S = 10.0
TRY_LATER = frozenset((408, 425, 429))  # RFC 9110, 8470, 6585: the same request may be taken later
OF_ADDRESS = frozenset((401, 402, 403, 404, 405, 407, 410, 421, 426, 451))  # or of the login, if all get it
PAUSE_S = (0.5, 60.0)  # first and longest pause after an output failed


class Sink(Protocol):
    """name: tells outputs apart in the spool, the same after a restart."""

    name: str

    def deliver(self, spool: Spool) -> int:
        """Writes what the spool has for it and confirms it; returns how many results. Raises `OutputError`."""


class FileSink:
    """Appends to a file: one JSON object a line, or CSV with a header line when the name ends in .csv.

    Guarantees: exactly once per result, also across kill -9 and power cuts; the file may be moved away (logrotate)
    while running. Requirement: no other process appends to it. A file that holds something else is left alone: raises
    `ConnectionOptionsError` at the start, later `OutputError`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = safe_text(f"file:{self.path.absolute()}")
        self._csv = self.path.suffix.lower() == ".csv"
        self._aligned = False
        self._skip: set[tuple[str, bool]] = set()
        if (other := self._other()) is not None:
            raise ConnectionOptionsError(f"--out {other}")

    def deliver(self, spool: Spool) -> int:
        rows, state = spool.undelivered(self.name)
        if not rows:
            return 0
        try:
            self._make_folder()
            if not self._regular():
                self._write_through(rows)
                spool.delivered(self.name, rows[-1][0], {})
                return len(rows)
            if not self._aligned and (other := self._other()) is not None:
                raise OutputError(other)
            with open(self.path, "a+b") as file:
                rows_left = rows if self._aligned else rows[self._align(file, rows, state) :]
                self._aligned = False  # until the spool knows: from here on, lines may be in the file that it does not
                if self._csv and os.fstat(file.fileno()).st_size == 0:
                    file.write(_csv_row(dict(zip(CSV_FIELDS, CSV_FIELDS))))
                for _, line in rows_left:
                    if not self._skip or _identity(json.loads(line)) not in self._skip:
                        file.write(self._render(line))
                file.flush()
                os.fsync(file.fileno())
                end = os.fstat(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{safe_text(self.path)}: results cannot be written ({error.strerror or error})"
            ) from error
        spool.delivered(self.name, rows[-1][0], {"inode": end.st_ino, "offset": end.st_size})
        self._aligned = True
        return len(rows)

    def _make_folder(self) -> None:
        folder = self.path.parent
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{safe_text(folder)} is not a folder")
        folder.mkdir(parents=True, exist_ok=True)

    def _other(self) -> str | None:
        """Why this is no file for results: it was there, and holds something else."""
        head = b""
        with contextlib.suppress(OSError):  # there is none, or writing it tells
            if self._regular():
                with open(self.path, "rb") as file:
                    head = file.read(256)
        head = head.lstrip(b"\0\xef\xbb\xbf \t\r\n")  # zeros: what a power cut leaves
        wanted = _csv_row(dict(zip(CSV_FIELDS, CSV_FIELDS))) if self._csv else b"{"
        if not head or head.startswith(wanted[: len(head)]):
            return None
        kind = other_kind(head) or "something else"
        if self._csv and kind == "a text file":
            kind = "another table: its columns are not those of results"
        return f"{safe_text(self.path)}: holds {kind}, and no results: name another file"

    def _regular(self) -> bool:
        try:
            return stat.S_ISREG(os.stat(self.path).st_mode)
        except FileNotFoundError:
            return True

    def _write_through(self, rows: Sequence[tuple[int, str]]) -> None:
        """To a pipe or a device, which cannot be asked what it holds: at least once. A pipe that nobody reads fails."""
        target = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(target, True)
        with open(target, "wb") as file:
            file.writelines(self._render(line) for _, line in rows)

    def _render(self, line: str) -> bytes:
        return _csv_row(_flat(json.loads(line))) if self._csv else line.encode() + b"\n"

    def _align(self, file: io.BufferedRandom, rows: Sequence[tuple[int, str]], state: dict[str, Any]) -> int:
        """Makes the file end with a whole line; returns how many of `rows` it holds already."""
        held = os.fstat(file.fileno())
        if state.get("inode") != held.st_ino or state["offset"] > held.st_size:
            file.seek(0)
            self._skip = _identities(file, self._csv)  # a new spool beside an old file, or the other way round
            start, done = held.st_size, 0
            file.seek(max(0, held.st_size - 1))
            torn = file.read(1) not in (b"", b"\n")
        else:
            file.seek(state["offset"])
            tail = file.read()
            start, done, torn = state["offset"], 0, False
            for _, line in rows:
                expected = self._render(line)
                if not tail.startswith(expected):
                    if expected.startswith(tail):
                        file.truncate(start)  # the line that was being written
                    else:
                        torn = not tail.endswith(b"\n")
                    break
                start, done, tail = start + len(expected), done + 1, tail[len(expected) :]
        if torn:
            file.write(b"\n")
        return done


class StreamSink:
    """JSON lines on an open text stream (stdout): at least once. ASCII where the stream is not UTF-8."""

    name = "stdout"

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def deliver(self, spool: Spool) -> int:
        rows, _ = spool.undelivered(self.name)
        if not rows:
            return 0
        try:
            for _, line in rows:
                self._stream.write((line if takes(self._stream, line) else json.dumps(json.loads(line))) + "\n")
            self._stream.flush()
        except BrokenPipeError:  # the reader has gone for good: the run ends
            raise
        except (OSError, ValueError) as error:
            raise OutputError(f"stdout: does not accept results ({error})") from error
        spool.delivered(self.name, rows[-1][0], {})
        return len(rows)


class WebhookSink:
    """POSTs each result as JSON; 2xx confirms it. At least once, with `Idempotency-Key: KEY-final` or `KEY-early`.

    Redirects count as failures. What a 4xx means: `edge.field.refused_results`. Raises `ConnectionOptionsError` for an
    address that is none.
    """

    def __init__(self, url: str, timeout_s: float = WEBHOOK_TIMEOUT_S) -> None:
        try:
            checked(url)
        except WebError as error:
            raise ConnectionOptionsError(f"--webhook {shown_address(url)!r} is not a web address: {error}") from error
        self.name = sink_name("webhook", url)
        self._url, self._timeout_s = url, timeout_s
        self.refusals = Refusals()

    def deliver(self, spool: Spool) -> int:
        return deliver_each(spool, self.name, self._post, self.refusals)

    def _post(self, line: str) -> None:
        key, final = _identity(json.loads(line))
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"{key}-{'final' if final else 'early'}"}
        try:
            with open_url(self._url, self._timeout_s, line.encode(), headers, follow=False) as reply:
                read_reply(reply, 1)
        except WebError as error:
            text = f"{shown_address(self._url)}: does not accept results ({error})"
            if error.status is not None and 400 <= error.status < 500 and error.status not in TRY_LATER:
                raise ResultRefused(text, error.status not in OF_ADDRESS) from error
            raise OutputError(text) from error


def sink_name(kind: str, address: str) -> str:
    """What the spool calls an output: its address without secrets, told apart from others by a hash where it has some.

    >>> sink_name("webhook", "http://host/path")
    'webhook:http://host/path'
    """
    plain = shown_address(address)
    if plain == address:
        return f"{kind}:{plain}"
    return f"{kind}:{plain}#{hashlib.sha256(os.fsencode(address)).hexdigest()[:8]}"


class Delivery:
    """Carries results from the spool to its sinks, each on a thread of its own: one that hangs holds up no other.

    A sink that fails, whatever the exception, is tried again with growing pauses. say: told once when a sink begins to
    fail, and when it works again.
    """

    def __init__(self, spool: Spool, sinks: Sequence[Sink], say: Callable[[str], None]) -> None:
        spool.set_sinks([sink.name for sink in sinks])
        self._carriers = [_Carrier(spool, sink, say) for sink in sinks]

    @property
    def fault(self) -> BaseException | None:
        """What ended an output for good: its reader is gone."""
        return next((each.fault for each in self._carriers if each.fault is not None), None)

    def troubles(self) -> dict[str, dict[str, Any]]:
        """Outputs that take nothing at present: since when (seconds since 1970), and why."""
        held = [(each.name, each.trouble) for each in self._carriers]
        return {name: trouble for name, trouble in held if trouble is not None}

    def refused(self) -> dict[str, Refusals]:
        """Outputs that gave results up because the receiver refuses them."""
        return {each.name: each.refusals for each in self._carriers if each.refusals.count}

    def wake(self) -> None:
        """There may be something new."""
        for each in self._carriers:
            each.wake.set()

    def close(self, timeout_s: float = 15.0) -> None:
        """Writes what there is, once more, and ends."""
        end = time.monotonic() + timeout_s
        for each in self._carriers:
            each.ending.set()
            each.wake.set()
        for each in self._carriers:
            each.thread.join(max(0.0, end - time.monotonic()))


class _Carrier:
    """One sink's thread."""

    def __init__(self, spool: Spool, sink: Sink, say: Callable[[str], None]) -> None:
        self._spool, self._sink, self._say = spool, sink, say
        self.name = sink.name
        self.wake, self.ending = threading.Event(), threading.Event()
        self.fault: BaseException | None = None
        self.trouble: dict[str, Any] | None = None
        self.refusals: Refusals = getattr(sink, "refusals", Refusals())
        self.thread = threading.Thread(target=self._guarded, name="thinwire-results", daemon=True)
        self.thread.start()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.fault = error
        close = getattr(self._sink, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()

    def _run(self) -> None:
        pause, refusal_told = 0.0, False
        while True:
            ending = self.ending.is_set()
            self.wake.clear()
            try:
                while self._sink.deliver(self._spool):
                    pass
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever a sink, its other end or one line does: it is the sink's pause
                text = str(error) if isinstance(error, ThinwireError) else f"{self.name}: {described(error)}"
                if self.trouble is None:
                    self._say(f"{text}; results wait in the spool")
                    self.trouble = {"since": time.time(), "error": without_secrets(text)}
                pause = min(PAUSE_S[1], max(PAUSE_S[0], 2 * pause))
            else:
                if self.trouble is not None:
                    self._say(f"{self.name}: accepts results again")
                self.trouble, pause = None, 0.0
            if self.refusals.count and not refusal_told:
                refusal_told = True
                self._say(f"{self.refusals.why}; a result that is refused is kept in {self.refusals.path}")
            if ending:
                return
            self._rest(pause)

    def _rest(self, pause_s: float) -> None:
        """Until there may be something new; after a failure the whole pause."""
        if not pause_s:
            self.wake.wait()
        self.ending.wait(pause_s)


def _identity(record: dict[str, Any]) -> tuple[str, bool]:
    return record["key"], record["final"]


def _identities(file: io.BufferedRandom, is_csv: bool) -> set[tuple[str, bool]]:
    """(key, final) of every result in a file; other lines are passed over."""
    found = set()
    for line in file:
        try:
            if is_csv:
                key, final = next(csv.reader([line.decode()]))[:2]
                found.add((key, final == "true"))
            else:
                found.add(_identity(json.loads(line)))
        except (ValueError, LookupError, TypeError, StopIteration, csv.Error):
            continue
    return found


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    best = (record.get("predictions") or [{}])[0]
    flat = {**record, **best, "error": (record.get("error") or {}).get("reason")}
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in flat.items()}


def _csv_row(values: dict[str, Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([values.get(name) for name in CSV_FIELDS])
    return text.getvalue().encode()
