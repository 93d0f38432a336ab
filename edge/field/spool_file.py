"""The spool's file: opened with its durability settings, locked, repaired when damaged, looked at beside its writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from edge.errors import SpoolBusy, SpoolCorrupt, SpoolDiskFull, SpoolError, SpoolReadOnly
from thinwire.files import other_kind
from thinwire.text import shown

SQLITE = b"SQLite format 3\0"
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS questions (id INTEGER PRIMARY KEY, text TEXT UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS frames (              -- packet is NULL once the result is in the outbox
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB UNIQUE NOT NULL, source TEXT NOT NULL, captured_at REAL NOT NULL,
    accepted_at REAL NOT NULL, question INTEGER NOT NULL, packet BLOB, others BLOB);
CREATE INDEX IF NOT EXISTS waiting ON frames (id) WHERE packet IS NOT NULL;
CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, line TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sinks (name TEXT PRIMARY KEY, cursor INTEGER NOT NULL, state TEXT NOT NULL) WITHOUT ROWID;
"""

HELD = "length(packet) + coalesce(length(others), 0)"  # bytes of a frame's packets


def open_database(path: Path, max_pages: int) -> tuple[sqlite3.Connection, str | None]:
    """The database in WAL mode with the schema, and what was set aside because it was damaged (None: nothing).

    Raises `SpoolError` for a file that was never a spool, and leaves it alone.
    """
    _check_ours(path)
    try:
        return _connect(path, max_pages), None
    except SpoolCorrupt as error:
        aside = _set_aside(path)
        db = _connect(path, max_pages)
        saved = _salvage(aside, db)
        return db, f"{error}; it is kept as {aside}, {saved} waiting frames were taken over"


def _check_ours(path: Path) -> None:
    """A slip in --spool may name a picture or another program's database: they are not moved. Text is: a failing file
    system leaves pieces of other files where a spool was."""
    head = b""
    with contextlib.suppress(OSError):  # opening it tells
        if path.is_file():
            with open(path, "rb") as file:
                head = file.read(64)
    other = kind if (kind := other_kind(head)) != "a text file" else None
    if head.startswith(SQLITE):
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db,
        ):
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            other = "another program's database" if names and not names & {"frames", "outbox", "meta"} else None
    if other is not None:
        raise SpoolError(f"{shown(path)}: is no spool but {other}: name another file with --spool")


def _connect(path: Path, max_pages: int) -> sqlite3.Connection:
    db = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # A bound beyond the spool's own, so that a bug here cannot fill the device's disk
        db.execute(f"PRAGMA max_page_count = {max_pages}")
        db.execute("PRAGMA journal_size_limit = 4194304")
        (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise SpoolCorrupt(f"{path}: is damaged ({health})")
        db.executescript(SCHEMA)
        if "others" not in {row[1] for row in db.execute("PRAGMA table_info(frames)")}:  # of an earlier release
            db.execute("ALTER TABLE frames ADD COLUMN others BLOB")
        db.execute("BEGIN IMMEDIATE")  # a disk that takes no writes shows here, before a frame is accepted
        db.execute("INSERT OR REPLACE INTO meta VALUES ('opened', ?)", (repr(time.time()),))
        db.execute("COMMIT")
        return db
    except (sqlite3.Error, SpoolCorrupt) as error:
        if db is not None:
            db.close()
        raise typed(error, path) from error


def spool_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a spool holds, for `thinwire-edge status`, beside its writer. Raises `SpoolError` when there is none."""
    if not Path(path).is_file():
        raise SpoolError(f"{path}: no spool found: `thinwire-edge run --spool {path}` creates one")
    try:
        db = _open_to_look(Path(path).absolute().as_uri())
        try:
            waiting, size, oldest = db.execute(
                f"SELECT count(*), coalesce(sum({HELD}), 0), min(accepted_at) FROM frames WHERE packet IS NOT NULL"
            ).fetchone()
            (known,) = db.execute("SELECT count(*) FROM frames").fetchone()
            sinks = {
                name: db.execute("SELECT count(*) FROM outbox WHERE id > ?", (cursor,)).fetchone()[0]
                for name, cursor in db.execute("SELECT name, cursor FROM sinks").fetchall()
            }
            notes = {
                name: json.loads(value)
                for name, value in db.execute("SELECT name, value FROM meta WHERE name LIKE 'run.%'").fetchall()
            }
        finally:
            db.close()
    except sqlite3.Error as error:
        raise typed(error, Path(path)) from error
    return {
        "spool": os.fspath(path),
        "waiting_frames": waiting,
        "waiting_bytes": size,
        "oldest_s": None if oldest is None else round(max(0.0, time.time() - oldest), 1),
        "known_frames": known,
        "unwritten_results": sinks,
        "running": _held(Path(path)),
        **{name.removeprefix("run."): value for name, value in notes.items()},
    }


def _open_to_look(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=5)
    try:
        db.execute("SELECT count(*) FROM meta").fetchone()
        return db
    except sqlite3.OperationalError:  # a read-only disk has no place for the log's index, and no writer either
        db.close()
        return sqlite3.connect(f"{uri}?immutable=1", uri=True)


def hold(path: Path) -> int:
    """Takes the lock file beside the spool; the system lets go of it however the process ends."""
    if path.is_dir():
        raise SpoolError(f"{shown(path)}: is a folder: name a file in it with --spool")
    try:
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        guard = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        kind = SpoolDiskFull if error.errno == errno.ENOSPC else SpoolReadOnly
        raise kind(
            f"{path}: the spool's folder is not writable ({error.strerror}): name another with --spool"
        ) from error
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(guard)
        raise SpoolBusy(
            f"{path}: another process is using this spool: stop it, or give another file with --spool"
        ) from error
    return guard


def _held(path: Path) -> bool:
    try:
        guard = os.open(f"{path}.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(guard)


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}")
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            shutil.move(f"{path}{end}", f"{aside}{end}")
    return aside


def _salvage(aside: Path, db: sqlite3.Connection) -> int:
    """Copies what can still be read, from both ends of each table, since one bad page stops a walk."""
    tables = {"questions": "id, text", "frames": None, "outbox": "id, line", "sinks": "name, cursor, state"}
    tables["frames"] = "id, key, source, captured_at, accepted_at, question, packet"
    variants = {"frames": (f"{tables['frames']}, others", tables["frames"])}  # files of earlier releases have no others
    with contextlib.suppress(sqlite3.Error):
        old = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True)
        for table, known in tables.items():
            for fields in variants.get(table, (known,)):
                order = fields.partition(",")[0]
                marks = ",".join("?" * len(fields.split(",")))
                for direction in ("ASC", "DESC"):
                    with contextlib.suppress(sqlite3.Error):
                        for row in old.execute(f"SELECT {fields} FROM {table} ORDER BY {order} {direction}"):
                            db.execute(f"INSERT OR IGNORE INTO {table} ({fields}) VALUES ({marks})", row)
        old.close()
    return db.execute("SELECT count(*) FROM frames WHERE packet IS NOT NULL").fetchone()[0]


def typed(error: Exception, path: Path) -> SpoolError:
    if isinstance(error, SpoolError):
        return error
    text, code = str(error), getattr(error, "sqlite_errorcode", None) or 0
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return SpoolDiskFull(f"{path}: the disk is full: free some space, or lower --spool-mb")
    if code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return SpoolReadOnly(f"{path}: cannot be written ({text}): mount it read-write, or name another with --spool")
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return SpoolCorrupt(f"{path}: is damaged ({text})")
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return SpoolDiskFull(f"{path}: the disk failed ({text}): check its free space and its health")
    return SpoolError(f"{path}: {text}")
