"""Kept frames on disk: one SQLite file that only this process and this user may open."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cloud.errors import BadConfiguration, StoreDamaged, StoreFailed
from cloud.search.frames import Frame
from cloud.search.store_file import COLUMNS, open_database, replace_database, store_failed

ROW_BYTES = 64  # about what SQLite adds to a row
_COLUMNS = ", ".join(COLUMNS)


class FrameStore:
    """Frames by id. Thread-safe. Guarantees: what `add` returned ids for survives the process; what was deleted is
    overwritten in the file (secure_delete) before `delete` returns.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes `path`; see `open_database` for one that is damaged. Raises `BadConfiguration` for another
        version or program's database and for one in use, `StoreFailed` where the disk takes none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._held = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._held)
            raise BadConfiguration(
                f"{path}: another process is using this store: give another file with --store"
            ) from None
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._db = open_database(path, _size_of)
            self._count()
        except BaseException:
            os.close(self._held)
            raise

    def _count(self) -> None:
        self.frames, self.bytes = self._db.execute("SELECT count(*), coalesce(sum(nbytes), 0) FROM frames").fetchone()

    def repair(self, error: StoreDamaged) -> None:
        """Sets the file aside that `error` is about and goes on with what can be read of it. Raises `StoreFailed`."""
        with self._lock:
            if not self._closed:
                self._db.close()
                self._db = replace_database(self.path, _size_of, error)
                self._count()

    @contextlib.contextmanager
    def _using(self, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """The database, by one thread at a time. What SQLite says becomes `StoreFailed`; a failed write is undone."""
        with self._lock:
            try:
                if writes:
                    self._db.execute("BEGIN")
                yield self._db
                if writes:
                    self._db.execute("COMMIT")
            except BaseException as error:
                if self._closed:
                    raise StoreFailed(f"{self.path}: the store is closed") from error
                # A full disk has ended the transaction already
                if self._db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                    raise store_failed(error, self.path) from error
                raise

    def add(self, frames: Sequence[Frame]) -> list[int]:
        """Writes them in one transaction and returns their ids, ascending."""
        ids, total = [], 0
        with self._using(writes=True) as db:
            for frame in frames:
                predictions = json.dumps(frame.predictions, ensure_ascii=False, separators=(",", ":"))
                vector = frame.vector.astype(np.float16).tobytes()
                row = (frame.at_ms, frame.device_id, frame.clip_id, frame.bundle, frame.layers, frame.packet)
                nbytes = _nbytes(frame.packet, predictions, vector)
                cursor = db.execute(
                    "INSERT INTO frames (at_ms, device_id, clip_id, bundle, layers, packet, predictions, vector, "
                    "nbytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, predictions, vector, nbytes),
                )
                ids.append(cursor.lastrowid)
                total += nbytes
        self.frames += len(ids)
        self.bytes += total
        return ids

    def get(self, ids: Iterable[int]) -> dict[int, Frame]:
        """Those that are there, by id."""
        wanted = list(ids)
        found = {}
        with self._using() as db:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                for row in db.execute(f"SELECT {_COLUMNS} FROM frames WHERE id IN ({marks})", part):
                    with contextlib.suppress(ValueError):
                        found[row[0]] = _frame(row)
        return found

    def every(self) -> Iterator[tuple[int, Frame]]:
        """(id, frame without its packet), ascending; for filling the memory at the start."""
        columns = _COLUMNS.replace("packet", "NULL")
        with self._using() as db:
            for row in db.execute(f"SELECT {columns} FROM frames ORDER BY id"):
                with contextlib.suppress(ValueError):  # a block of zeros within a sound page, say
                    yield row[0], _frame(row)

    def delete(self, ids: Sequence[int]) -> int:
        """How many of them there were."""
        with self._using(writes=True) as db:
            db.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")
            db.execute("DELETE FROM gone")
            db.executemany("INSERT OR IGNORE INTO gone VALUES (?)", ((int(each),) for each in ids))
            there = "id IN (SELECT id FROM gone)"
            count, nbytes = db.execute(
                f"SELECT count(*), coalesce(sum(nbytes), 0) FROM frames WHERE {there}"
            ).fetchone()
            db.execute(f"DELETE FROM frames WHERE {there}")
        self.frames -= count
        self.bytes -= nbytes
        with self._using() as db:
            db.execute("PRAGMA incremental_vacuum").fetchall()
            # The old pages are in the log until it is copied back; then it is emptied
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def oldest(self, surplus_bytes: int, before_ms: int) -> list[int]:
        """Ids of frames older than `before_ms`, and of the oldest ones that hold `surplus_bytes` together."""
        with self._using() as db:
            ids = [row[0] for row in db.execute("SELECT id FROM frames WHERE at_ms < ?", (before_ms,))]
            if surplus_bytes > 0:
                freed = 0
                for frame_id, nbytes in db.execute("SELECT id, nbytes FROM frames ORDER BY id"):
                    ids.append(frame_id)
                    freed += nbytes
                    if freed >= surplus_bytes:
                        break
        return ids

    def span_ms(self) -> tuple[int, int]:
        """(oldest, newest) milliseconds since 1970; zeros while empty."""
        with self._using() as db:
            return db.execute("SELECT coalesce(min(at_ms), 0), coalesce(max(at_ms), 0) FROM frames").fetchone()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()
                os.close(self._held)


def _frame(row: tuple) -> Frame:
    """Raises `ValueError` for a row that means nothing."""
    _, at_ms, device_id, clip_id, bundle, layers, packet, predictions, vector = row
    if not (isinstance(at_ms, int) and isinstance(device_id, str) and isinstance(clip_id, str)):
        raise ValueError("no time, device or CLIP")
    try:
        pairs = tuple((str(label), float(probability)) for label, probability in json.loads(predictions))
        numbers = np.frombuffer(vector, np.float16).astype(np.float32)
    except TypeError as error:
        raise ValueError(str(error)) from error
    length = float(np.linalg.norm(numbers))
    if not 0.9 < length < 1.1:
        raise ValueError("no vector of unit length")
    return Frame(at_ms, device_id, clip_id, bundle, layers, packet, pairs, numbers / length)


def _size_of(row: tuple) -> int:
    """As the store counts it. Raises as `_frame`."""
    _frame(row)
    return _nbytes(*row[-3:])


def _nbytes(packet: bytes | None, predictions: str, vector: bytes) -> int:
    return len(packet or b"") + len(predictions) + len(vector) + ROW_BYTES
