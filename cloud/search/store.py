"""Kept frames on disk: one SQLite file that only this process and this user may open."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cloud.errors import BadConfiguration
from cloud.search.frames import Frame

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE frames (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, so that a deleted frame's id names nothing
    at_ms INTEGER NOT NULL, device_id TEXT NOT NULL, clip_id TEXT NOT NULL, bundle TEXT NOT NULL,
    layers INTEGER NOT NULL, packet BLOB, predictions TEXT NOT NULL,
    vector BLOB NOT NULL,  -- float16: half the bytes; cosines move by less than 0.001
    nbytes INTEGER NOT NULL
);
"""
_COLUMNS = "id, at_ms, device_id, clip_id, bundle, layers, packet, predictions, vector"
ROW_BYTES = 64  # about what SQLite adds to a row


class FrameStore:
    """Frames by id. Thread-safe. Guarantees: what `add` returned ids for survives the process; what was deleted is
    overwritten in the file (secure_delete) before `delete` returns.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`. Raises `BadConfiguration` for one that is no store, of another version, or in use."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._held = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._held)
            raise BadConfiguration(f"{path}: another process keeps its frames there: name another --store") from None
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._open()
        except sqlite3.DatabaseError as error:
            os.close(self._held)
            raise BadConfiguration(f"{path}: is no frame store ({error})") from None
        except BadConfiguration:
            os.close(self._held)
            raise
        self.frames, self.bytes = self._db.execute("SELECT count(*), coalesce(sum(nbytes), 0) FROM frames").fetchone()

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only before the first table
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise BadConfiguration(f"{self.path}: is no frame store of version {SCHEMA_VERSION}: name another --store")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last moments, never the file
        self._db.execute("PRAGMA secure_delete=ON")

    def add(self, frames: Sequence[Frame]) -> list[int]:
        """Writes them in one transaction and returns their ids, ascending."""
        ids, total = [], 0
        with self._lock:
            self._db.execute("BEGIN")
            try:
                for frame in frames:
                    predictions = json.dumps(frame.predictions, ensure_ascii=False, separators=(",", ":"))
                    vector = frame.vector.astype(np.float16).tobytes()
                    nbytes = len(frame.packet or b"") + len(predictions) + len(vector) + ROW_BYTES
                    row = (frame.at_ms, frame.device_id, frame.clip_id, frame.bundle, frame.layers, frame.packet)
                    cursor = self._db.execute(
                        "INSERT INTO frames (at_ms, device_id, clip_id, bundle, layers, packet, predictions, vector, "
                        "nbytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (*row, predictions, vector, nbytes),
                    )
                    ids.append(cursor.lastrowid)
                    total += nbytes
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self.frames += len(ids)
            self.bytes += total
        return ids

    def get(self, ids: Iterable[int]) -> dict[int, Frame]:
        """Those that are there, by id."""
        wanted = list(ids)
        found = {}
        with self._lock:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                for row in self._db.execute(f"SELECT {_COLUMNS} FROM frames WHERE id IN ({marks})", part):
                    found[row[0]] = _frame(row)
        return found

    def every(self) -> Iterator[tuple[int, Frame]]:
        """(id, frame without its packet), ascending; for filling the memory at the start."""
        columns = _COLUMNS.replace("packet", "NULL")
        with self._lock:
            for row in self._db.execute(f"SELECT {columns} FROM frames ORDER BY id"):
                yield row[0], _frame(row)

    def delete(self, ids: Sequence[int]) -> int:
        """How many of them there were."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                self._db.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")
                self._db.execute("DELETE FROM gone")
                self._db.executemany("INSERT OR IGNORE INTO gone VALUES (?)", ((int(each),) for each in ids))
                there = "id IN (SELECT id FROM gone)"
                count, nbytes = self._db.execute(
                    f"SELECT count(*), coalesce(sum(nbytes), 0) FROM frames WHERE {there}"
                ).fetchone()
                self._db.execute(f"DELETE FROM frames WHERE {there}")
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self.frames -= count
            self.bytes -= nbytes
            self._db.execute("PRAGMA incremental_vacuum").fetchall()
            # The old pages are in the log until it is copied back; then it is emptied
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def oldest(self, surplus_bytes: int, before_ms: int) -> list[int]:
        """Ids of frames older than `before_ms`, and of the oldest ones that hold `surplus_bytes` together."""
        with self._lock:
            ids = [row[0] for row in self._db.execute("SELECT id FROM frames WHERE at_ms < ?", (before_ms,))]
            if surplus_bytes > 0:
                freed = 0
                for frame_id, nbytes in self._db.execute("SELECT id, nbytes FROM frames ORDER BY id"):
                    ids.append(frame_id)
                    freed += nbytes
                    if freed >= surplus_bytes:
                        break
        return ids

    def span_ms(self) -> tuple[int, int]:
        """(oldest, newest) milliseconds since 1970; zeros while empty."""
        with self._lock:
            return self._db.execute("SELECT coalesce(min(at_ms), 0), coalesce(max(at_ms), 0) FROM frames").fetchone()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()
                os.close(self._held)


def _frame(row: tuple) -> Frame:
    _, at_ms, device_id, clip_id, bundle, layers, packet, predictions, vector = row
    pairs = tuple((label, probability) for label, probability in json.loads(predictions))
    numbers = np.frombuffer(vector, np.float16).astype(np.float32)
    return Frame(at_ms, device_id, clip_id, bundle, layers, packet, pairs, numbers / np.linalg.norm(numbers))
