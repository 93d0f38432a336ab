"""The spool: frames that were accepted and not yet answered, and results not yet written, in one SQLite file.

Guarantees and requirements
- Accepted means on disk: `accept` returns after the frame's transaction is committed to the write-ahead log and fsynced
  (WAL, synchronous=FULL; https://www.sqlite.org/pragma.html#pragma_synchronous). A process killed with -9 loses
  nothing; a power cut loses nothing on a disk that honours fsync. It costs one fsync per frame.
- Every accepted frame gets exactly one final result: an answer, or the reason why there is none (refused by the server,
  expired, dropped). `finish` takes the packet out and puts the result in, in one transaction.
- Bounded: packets and unwritten results together hold at most `max_bytes`, frames wait at most `max_age_s`. When full,
  `refuse` (default) turns new frames away with `SpoolFull`, so that what was accepted stays; `drop-oldest` gives the
  oldest waiting frames the result SPOOL_FULL instead. Results are never dropped.
- A key is accepted once; the newest `remember` keys are known, so that a restart does not send a folder again.
- One process writes at a time (`SpoolBusy`); any number may look (`spool_facts`).
- A clock that jumps does not age frames: see `_now`. A damaged file is set aside, and what can be read of it is taken
  over. May be shared by threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import SpoolError, SpoolFull
from edge.field.result_lines import lost
from edge.field.spool_file import HELD, hold, open_database, typed
from thinwire.text import safe_text

WHEN_FULL = ("refuse", "drop-oldest")
CLOCK_STEP_S = 60.0  # a wall clock that leaves the monotonic one by more has been set, not drifted
ROW_BYTES = 160  # what SQLite needs for a row beside its packet, about
PAGE_BYTES = 4096
MAX_FRESH = 1024  # frames looked at for a deadline that can still be met


@dataclass(frozen=True)
class SpooledFrame:
    """A frame in the spool. key: 16 bytes, the same on every repeat; accepted_at: seconds since 1970.

    others: packets of other bundles, sent where the server asks for them.
    """

    key: bytes
    source: str
    captured_at: float
    accepted_at: float
    question: int
    packet: bytes
    others: tuple[bytes, ...] = ()


class Spool:
    """The one writer of a spool file; see the module. path: the file, made with its folder if need be.

    Raises `SpoolBusy`, `SpoolReadOnly`, `SpoolDiskFull` or `SpoolError` when it cannot be opened. `recovered` tells
    what was set aside at opening, None for a sound file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_bytes: int = 256 << 20,
        max_age_s: float = 7 * 86400.0,
        when_full: str = "refuse",
        remember: int = 200_000,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if when_full not in WHEN_FULL:
            raise SpoolError(f"a full spool can {' or '.join(WHEN_FULL)}, not {when_full!r}")
        if max_bytes < 1 << 16 or max_age_s <= 0 or remember < 1:
            raise SpoolError("a spool holds 64 KiB or more, for more than 0 seconds, and remembers 1 key or more")
        self.path, self.max_bytes, self.max_age_s, self.when_full = Path(path), max_bytes, max_age_s, when_full
        self._remember, self._clock, self._monotonic = remember, clock, monotonic
        self._lock = threading.RLock()
        self._guard = hold(self.path)
        try:
            max_pages = 2 * max_bytes // PAGE_BYTES + remember // 8 + 1024
            self._db, self.recovered = open_database(self.path, max_pages)
            with self._transaction():
                self._db.execute("INSERT OR IGNORE INTO meta VALUES ('device', ?)", (uuid.uuid4().hex,))
            self._wall0, self._mono0 = self._clock(), self._monotonic()
            self._after_a_clock_set_back()
            self._count()
        except BaseException:
            os.close(self._guard)
            raise

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._guard >= 0:
                os.close(self._guard)
                self._guard = -1

    # ---------------------------------------------------------------- frames in

    def accept(
        self,
        key: bytes,
        source: str,
        packet: bytes | None,
        question: str,
        captured_at: float,
        line: dict[str, Any] | None = None,
        others: Sequence[bytes] = (),
    ) -> bool:
        """Takes a frame; once this returns it is on disk. False: the key is known, nothing was done.

        question: JSON text of what is asked. line: a result to write at once: a provisional one (`field.fallback`),
        or the final one of a frame that cannot be sent, whose packet is None. others: packets of other bundles of the
        same frame. Raises `SpoolFull` (policy), `SpoolDiskFull`, `SpoolReadOnly`; then the frame was not accepted.
        """
        question = safe_text(question)
        if len(key) != 16:
            raise SpoolError(f"a key is 16 bytes, not {len(key)}: take edge.field.frame_keys")
        more = _joined(others)
        size = 0 if packet is None else len(packet) + len(more or b"") + ROW_BYTES
        with self._lock:
            now = self._now()
            if self._db.execute("SELECT 1 FROM frames WHERE key = ?", (key,)).fetchone():
                return False
            if self.held_bytes + size > self.max_bytes:
                self._make_room(size)
            with self._transaction() as db:
                db.execute("INSERT OR IGNORE INTO questions (text) VALUES (?)", (question,))
                (number,) = db.execute("SELECT id FROM questions WHERE text = ?", (question,)).fetchone()
                db.execute(
                    "INSERT INTO frames (key, source, captured_at, accepted_at, question, packet, others) "
                    "VALUES (?,?,?,?,?,?,?)",
                    (key, safe_text(source), captured_at, now, number, packet, more),
                )
                db.execute("INSERT OR REPLACE INTO meta VALUES ('last_seen', ?)", (repr(now),))
                size += self._put(db, line) if line is not None else 0
            self.waiting_frames += packet is not None
            self.held_bytes += size
            return True

    def knows(self, key: bytes) -> bool:
        """Whether the key was accepted before (answered or not)."""
        with self._lock:
            return self._db.execute("SELECT 1 FROM frames WHERE key = ?", (key,)).fetchone() is not None

    # ---------------------------------------------------------------- frames out

    def waiting(self, limit: int, without: Collection[bytes] = (), fresh_s: float = 0.0) -> list[SpooledFrame]:
        """At most `limit` frames to send: those accepted in the last `fresh_s` seconds first, then the others.

        Oldest first within each. Frames whose deadline can still be met thus go before those that are late anyway.
        """
        fields = "key, source, captured_at, accepted_at, question, packet, others"
        every = f"SELECT {fields} FROM frames INDEXED BY waiting WHERE packet IS NOT NULL ORDER BY id"
        with self._lock:
            late = self._now() - fresh_s
            fresh: list[SpooledFrame] = []
            for row in self._rows(f"{every} DESC"):  # from the newest back: a long backlog is not walked
                if row[3] <= late or len(fresh) >= MAX_FRESH:
                    break
                fresh.append(_frame(row))
            found = [each for each in reversed(fresh) if each.key not in without][:limit]
            taken = {each.key for each in fresh}
            for row in self._rows(f"{every} ASC"):
                if len(found) >= limit or row[0] in taken:
                    break
                if row[0] not in without:
                    found.append(_frame(row))
        return found

    def question(self, number: int) -> dict[str, Any]:
        """What was asked of a frame, as it was given to `accept`."""
        with self._lock:
            (text,) = self._db.execute("SELECT text FROM questions WHERE id = ?", (number,)).fetchone()
        return json.loads(text)

    def finish(self, key: bytes, result: dict[str, Any]) -> bool:
        """A frame's final result. False, and nothing written, when it has one already or was never accepted."""
        with self._lock:
            return self._finish(key, result)

    def expire(self) -> int:
        """Gives frames older than `max_age_s` the result EXPIRED; returns how many."""
        with self._lock:
            edge = self._now() - self.max_age_s
            rows = self._db.execute(
                "SELECT key, source, captured_at FROM frames WHERE packet IS NOT NULL AND accepted_at < ? LIMIT 1000",
                (edge,),
            ).fetchall()
            why = f"waited longer than {self.max_age_s:g} s"
            return sum(self._finish(key, lost(key, source, at, "EXPIRED", why)) for key, source, at in rows)

    # ---------------------------------------------------------------- results out (edge.field.sinks)

    def set_sinks(self, names: Collection[str]) -> None:
        """The outputs from now on. A new one gets what lies in the outbox; one that is gone keeps nothing back."""
        names = [safe_text(name) for name in names]
        with self._lock, self._transaction() as db:
            for (name,) in db.execute("SELECT name FROM sinks").fetchall():
                if name not in names:
                    db.execute("DELETE FROM sinks WHERE name = ?", (name,))
            for name in names:
                db.execute("INSERT OR IGNORE INTO sinks VALUES (?, 0, '{}')", (name,))

    def undelivered(self, sink: str, limit: int = 256) -> tuple[list[tuple[int, str]], dict[str, Any]]:
        """((outbox id, JSON line), ...) that `sink` has not confirmed, in order, and the state that it kept."""
        with self._lock:
            cursor, state = self._db.execute(
                "SELECT cursor, state FROM sinks WHERE name = ?", (safe_text(sink),)
            ).fetchone()
            rows = self._db.execute("SELECT id, line FROM outbox WHERE id > ? ORDER BY id LIMIT ?", (cursor, limit))
            return rows.fetchall(), json.loads(state)

    def delivered(self, sink: str, cursor: int, state: dict[str, Any]) -> None:
        """`sink` holds every line up to outbox id `cursor`. Lines that every sink holds are removed."""
        with self._lock:
            with self._transaction() as db:
                db.execute(
                    "UPDATE sinks SET cursor = max(cursor, ?), state = ? WHERE name = ?",
                    (cursor, json.dumps(state), safe_text(sink)),
                )
                (least,) = db.execute("SELECT min(cursor) FROM sinks").fetchone()
                (freed,) = db.execute(
                    "SELECT coalesce(sum(length(line) + ?), 0) FROM outbox WHERE id <= ?", (ROW_BYTES, least)
                ).fetchone()
                db.execute("DELETE FROM outbox WHERE id <= ?", (least,))
            self.held_bytes -= freed

    def unwritten(self) -> dict[str, int]:
        """How many results each output has not confirmed."""
        with self._lock:
            cursors = self._db.execute("SELECT name, cursor FROM sinks ORDER BY name").fetchall()
            count = "SELECT count(*) FROM outbox WHERE id > ?"
            return {name: self._db.execute(count, (cursor,)).fetchone()[0] for name, cursor in cursors}

    # ---------------------------------------------------------------- books

    def note(self, name: str, value: Any) -> None:
        """Keeps a small JSON value (the day's bytes, the state of the link) for a restart and for `status`."""
        with self._lock, self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str, default: Any = None) -> Any:
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    @property
    def device(self) -> str:
        """A random name of this spool, 32 hex digits: with a frame's key it tells a repeat from a new frame."""
        with self._lock:
            return self._db.execute("SELECT value FROM meta WHERE name = 'device'").fetchone()[0]

    # ---------------------------------------------------------------- inside; the lock is held

    def _rows(self, query: str) -> Iterator[tuple]:
        cursor = self._db.execute(query)
        try:
            yield from cursor
        finally:
            cursor.close()  # an open read would keep the log from being folded back into the file

    def _finish(self, key: bytes, result: dict[str, Any]) -> bool:
        with self._transaction() as db:
            row = db.execute(f"SELECT {HELD}, id FROM frames WHERE key = ?", (key,)).fetchone()
            if row is None or row[0] is None:
                return False
            db.execute("UPDATE frames SET packet = NULL, others = NULL WHERE key = ?", (key,))
            db.execute("DELETE FROM frames WHERE packet IS NULL AND id < ?", (row[1] - self._remember,))
            added = self._put(db, result)
        self.waiting_frames -= 1
        self.held_bytes += added - row[0] - ROW_BYTES
        return True

    def _put(self, db: sqlite3.Connection, line: dict[str, Any]) -> int:
        text = safe_text(json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
        db.execute("INSERT INTO outbox (line) VALUES (?)", (text,))
        return len(text) + ROW_BYTES

    def _make_room(self, size: int) -> None:
        if self.when_full == "drop-oldest":
            while self.held_bytes + size > self.max_bytes:
                row = self._db.execute(
                    "SELECT key, source, captured_at, length(packet) FROM frames INDEXED BY waiting "
                    "WHERE packet IS NOT NULL ORDER BY id LIMIT 1"
                ).fetchone()
                before = self.held_bytes
                if row is not None:
                    self._finish(row[0], lost(*row[:3], "SPOOL_FULL", "dropped for a newer frame"))
                if row is None or self.held_bytes >= before:
                    break  # only unwritten results are left, or they are larger than the frames: nothing to gain
            else:
                return
        raise SpoolFull(
            f"{self.path}: holds {self.waiting_frames} frames, {self.held_bytes} bytes with unwritten results, of "
            f"{self.max_bytes}: wait for the link, raise --spool-mb, or take --when-full drop-oldest"
        )

    def _now(self) -> float:
        """Wall clock, with waiting frames moved along when it was set (a device may start in 1970).

        Within a run, the monotonic clock tells a set clock from time that passed. Between runs only a clock that went
        back can be told (`_after_a_clock_set_back`); one that went forward looks like time switched off.
        """
        wall, mono = self._clock(), self._monotonic()
        step = (wall - self._wall0) - (mono - self._mono0)
        if abs(step) > CLOCK_STEP_S:
            self._shift(step)
            self._wall0, self._mono0 = wall, mono
        return wall

    def _after_a_clock_set_back(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE name = 'last_seen'").fetchone()
        if row is not None and float(row[0]) > self._wall0 + CLOCK_STEP_S:
            self._shift(self._wall0 - float(row[0]))

    def _shift(self, step_s: float) -> None:
        with self._transaction() as db:
            db.execute("UPDATE frames SET accepted_at = accepted_at + ? WHERE packet IS NOT NULL", (step_s,))

    def _count(self) -> None:
        frames, held = self._db.execute(
            f"SELECT count(*), coalesce(sum({HELD} + ?), 0) FROM frames WHERE packet IS NOT NULL", (ROW_BYTES,)
        ).fetchone()
        (lines,) = self._db.execute("SELECT coalesce(sum(length(line) + ?), 0) FROM outbox", (ROW_BYTES,)).fetchone()
        self.waiting_frames, self.held_bytes = frames, held + lines

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise typed(error, self.path) from error


def _joined(others: Sequence[bytes]) -> bytes | None:
    """Packets as one column: each with its length before it, 4 bytes."""
    return b"".join(len(each).to_bytes(4, "big") + each for each in others) or None


def _frame(row: tuple) -> SpooledFrame:
    *known, joined = row
    others, place = [], 0
    while place < len(joined or b""):
        size = int.from_bytes(joined[place : place + 4], "big")
        others.append(joined[place + 4 : place + 4 + size])
        place += 4 + size
    return SpooledFrame(*known, tuple(others))
