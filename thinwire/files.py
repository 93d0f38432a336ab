"""Files that are there whole or not at all, and files that are read within bounds, whatever a name stands for."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import select
import stat
import sys
import tempfile
from pathlib import Path

SILENCE_S = 10.0  # a pipe that gives nothing for so long is given up
MAGICS = {
    b"\xff\xd8\xff": "a picture",
    b"\x89PNG": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture, sound or video",
    b"II*\0": "a picture",
    b"MM\0*": "a picture",
    b"BM": "a picture",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
}
OF_STDOUT = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG))
PIPE_BYTES = 64 << 20  # most that is read of what has no size


def write_whole(path: Path, text: str | bytes) -> None:
    """Writes a file so that a reader, or the next run after a kill, finds the old one or the new one, never a part.

    Makes the folder. Raises `OSError`; then the old file is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        os.chmod(partial, 0o644)  # mkstemp's 0600 would keep a web server from showing a report
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


class Endless(OSError):
    """What is named has no end."""


def open_file(path: str | os.PathLike[str]) -> io.FileIO:
    """A file, or a pipe that somebody writes to, open for `read_whole`; never waits for a pipe's other end.

    Raises `OSError`, for a device `Endless`.
    """
    file = io.FileIO(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    if stat.S_ISCHR(os.fstat(file.fileno()).st_mode) or stat.S_ISBLK(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Endless(errno.EINVAL, "is a device, not a file", os.fspath(path))
    return file


def read_whole(file: io.FileIO, most_bytes: int) -> bytes:
    """What an `open_file` holds. Raises `OSError` above `most_bytes` (64 MiB of a pipe), and for a pipe that is empty
    or silent for 10 seconds."""
    regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    most_bytes = most_bytes if regular else min(most_bytes, PIPE_BYTES)
    parts, size = [], 0
    while (part := file.read(min(1 << 20, most_bytes + 1 - size))) != b"":
        if part is None:  # nothing yet
            if not select.select([file], [], [], SILENCE_S)[0]:
                raise OSError(errno.ETIMEDOUT, f"is a pipe that gave nothing for {SILENCE_S:g} s", file.name)
            continue
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"has more than {most_bytes:,} bytes", file.name)
    if not regular and not parts:
        raise OSError(errno.ENODATA, "is a pipe that nothing comes out of", file.name)
    return b"".join(parts)


def read_file(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """A file's bytes, read within bounds: as `open_file` and `read_whole`, which raise `OSError`."""
    with open_file(path) as file:
        return read_whole(file, most_bytes)


def other_kind(head: bytes) -> str | None:
    """What a file is by its first bytes, where they tell for certain: a picture, text, an archive. None where they do
    not: a database, zeros, and what a failing disk left."""
    for magic, kind in MAGICS.items():
        if head.startswith(magic):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf")
    if (
        len(text) >= 4
        and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text)
        and not text.startswith(b"SQLite")
    ):
        return "a text file"
    return None


def told(error: OSError) -> str:
    """An error of the system as one line that names its file; stdout is the one that has no name.

    Call it for what a program's last handler catches. What stdout holds is dropped where it cannot be written, so that
    Python does not fail again at its end.
    """
    why = error.strerror or str(error) or type(error).__name__
    if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", why):  # numpy's words
        return "a file cannot be written whole: the disk is full, free some space"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        why = "is a file where a folder is needed: name another"
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {why}"
    with contextlib.suppress(AttributeError, ValueError):  # no stdout, or a closed one
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return f"the standard output cannot be written ({why})" if error.errno in OF_STDOUT else why
