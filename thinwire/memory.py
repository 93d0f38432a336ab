"""How much memory this process may still take, and the right to take some: asked before a picture is decoded.

A service manager's or container's limit (cgroup: systemd's `MemoryMax`, `docker run --memory`) kills the process that
crosses it, and a decoder that runs into it is killed again at each start. So the limit is read beforehand.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

SMALL_BYTES = 32 << 20  # less than this is taken without asking
RESERVE_BYTES = 16 << 20  # stays free for everything else
WAIT_S = 60.0
_ENDLESS = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63

_changed = threading.Condition()
_promised = 0  # bytes that threads of this process are about to take


@contextlib.contextmanager
def reserved(size_bytes: int) -> Iterator[None]:
    """The right to take `size_bytes` within the block. Waits while other threads hold such rights and there is too
    little for all. Raises `MemoryError`, naming both sizes, when there is too little for this one alone."""
    global _promised
    if size_bytes < SMALL_BYTES:
        yield
        return
    with _changed:
        while (free := free_bytes()) is not None and free - RESERVE_BYTES - _promised < size_bytes:
            if not _promised or not _changed.wait(WAIT_S):
                raise MemoryError(
                    f"takes about {size_bytes / 1e6:.0f} MB of memory and {max(0, free) / 1e6:.0f} MB are free here"
                )
        _promised += size_bytes
    try:
        yield
    finally:
        with _changed:
            _promised -= size_bytes
            _changed.notify_all()


def free_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take: the least of what the machine, its cgroups and its own limits leave.

    None where nothing tells. `root`: where /proc and /sys lie.
    """
    if not sys.platform.startswith("linux"):
        return None
    left = [*_of_machine(root), *_of_cgroups(root), *_of_process(root)]
    return min(left) if left else None


def _of_machine(root: Path) -> Iterator[int]:
    found = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo")))
    if "MemAvailable" in found:
        yield 1024 * (int(found["MemAvailable"]) + int(found.get("SwapFree", 0)))


def _of_cgroups(root: Path) -> Iterator[int]:
    """Of every cgroup from ours up to the root, version 1 and 2."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limits, used = root / "sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            limits, used = ("memory.limit_in_bytes",), "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(base):
                break
            bounds = [int(text) for name in limits if (text := _read(each / name).strip()).isdigit()]
            taken = _read(each / used).strip()
            if taken.isdigit() and bounds and min(bounds) < _ENDLESS:
                # Cached files are given back when memory runs short
                cache = re.findall(r"(?m)^(?:total_)?(?:in)?active_file (\d+)$", _read(each / "memory.stat"))
                cached = sum(map(int, cache[-2:]))
                yield min(bounds) - max(0, int(taken) - cached)


def _of_process(root: Path) -> Iterator[int]:
    """`ulimit -v`."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] if resource else -1
    pages = _read(root / "proc/self/statm").partition(" ")[0]
    if limit not in (-1, getattr(resource, "RLIM_INFINITY", -1)) and pages.isdigit():
        yield limit - int(pages) * resource.getpagesize()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
