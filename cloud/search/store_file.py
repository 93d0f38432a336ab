"""The frame store's file: opened with its settings, set aside when it is damaged, and what can be read taken over."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from cloud.errors import BadConfiguration, StoreDamaged, StoreFailed

log = logging.getLogger(__name__)

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
MOST_MISSES = 10_000  # lookups in a row that find nothing, before the salvage of a store ends
COLUMNS = ("id", "at_ms", "device_id", "clip_id", "bundle", "layers", "packet", "predictions", "vector")


def open_database(path: Path, size_of: Callable[[tuple], int]) -> sqlite3.Connection:
    """The store's database, made where there is none. What is damaged, or no database at all, is moved aside and its
    readable frames are taken over; the log says so.

    size_of: a row of `COLUMNS` → its size in bytes; raises `ValueError` for one that means nothing. Raises
    `BadConfiguration` for a sound database of something else, `StoreFailed` where the disk does not take one.
    """
    try:
        return _connect(path)
    except StoreDamaged as error:
        return replace_database(path, size_of, error)


def replace_database(path: Path, size_of: Callable[[tuple], int], error: StoreDamaged) -> sqlite3.Connection:
    """A new database in place of the closed one that `error` is about; otherwise as `open_database`."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
    try:
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                shutil.move(f"{path}{end}", f"{aside}{end}")
        db = _connect(path)
        saved = _salvage(aside, db, size_of)
    except (sqlite3.Error, OSError) as second:
        raise store_failed(second, path) from second
    log.error(
        "%s; it is kept as %s until it is as old as frames may be, or frames are deleted; %d frames were taken over",
        *(error, aside, saved),
    )
    return db


def set_aside(path: Path) -> list[Path]:
    """The damaged files beside `path`; their frames are as private as its own."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def store_failed(error: Exception, path: Path) -> StoreFailed:
    """Whatever SQLite or the system says of the disk, as one sentence that names the fix."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(f"{path}: is damaged ({error})")
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StoreFailed(f"{path}: the disk is full: free some space, or lower --store-mb")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM) or isinstance(error, OSError):
        return StoreFailed(f"{path}: cannot be written ({error}): mount it read-write, or name another with --store")
    if code == sqlite3.SQLITE_IOERR:
        return StoreFailed(f"{path}: the disk failed ({error}): check its free space and its health")
    return StoreFailed(f"{path}: {error}")


def _connect(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise store_failed(error, path) from error
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise StoreDamaged(f"{path}: is damaged ({health})")
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only before the first table
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION or not _has_frames(db):
            raise BadConfiguration(f"{path}: is not a frame store of version {SCHEMA_VERSION}: name another --store")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last moments, never the file
        db.execute("PRAGMA secure_delete=ON")
        return db
    except sqlite3.Error as error:
        db.close()
        raise store_failed(error, path) from error
    except BaseException:
        db.close()
        raise


def _has_frames(db: sqlite3.Connection) -> bool:
    columns = {row[1] for row in db.execute("PRAGMA table_info(frames)")}
    return columns.issuperset((*COLUMNS, "nbytes"))


def _salvage(aside: Path, db: sqlite3.Connection, size_of: Callable[[tuple], int]) -> int:
    """Copies the rows that can still be read: from both ends, and one by one between, since a bad page stops a walk."""
    columns = ", ".join(COLUMNS)
    insert = f"INSERT OR IGNORE INTO frames ({columns}, nbytes) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"

    def copy(where: str, values: tuple = ()) -> int | None:
        """The last id that was read."""
        last = None
        with contextlib.suppress(sqlite3.Error):
            for raw in old.execute(f"SELECT {columns} FROM frames {where}", values):
                with contextlib.suppress(ValueError):
                    row = tuple(_text(name, each) for name, each in zip(COLUMNS, raw, strict=True))
                    db.execute(insert, (*row, size_of(row)))
                    last = row[0]
        return last

    old = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True)
    try:
        old.execute("PRAGMA writable_schema=ON")  # reads a file that is shorter than its header says
        old.text_factory = bytes  # a name that is not UTF-8 any more must not end the walk
        db.execute("BEGIN")
        first, last = copy("ORDER BY id"), copy("ORDER BY id DESC")
        newest = 0
        with contextlib.suppress(sqlite3.Error):
            (newest,) = old.execute("SELECT seq FROM sqlite_sequence WHERE name = 'frames'").fetchone() or (0,)
        # Between the ends each id is looked up for itself: downwards from the newest, then upwards from the oldest
        misses, bottom, top = 0, first or 0, last or newest + 1
        upwards = itertools.count(bottom + 1) if last is None else ()
        for frame_id in itertools.chain(range(top - 1, bottom, -1), upwards):
            misses = 0 if copy("WHERE id = ?", (frame_id,)) else misses + 1
            if misses >= MOST_MISSES:
                break
        # Ids of lost frames are not given again
        db.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'frames'", (newest,))
        db.execute("COMMIT")
    finally:
        old.close()
    return db.execute("SELECT count(*) FROM frames").fetchone()[0]


def _text(name: str, value: object) -> object:
    """SQLite's texts come as bytes here; packets and vectors are bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) and name not in ("packet", "vector") else value
