"""What this program needs of the system beneath it, and how it says so: one place for both command lines."""

from __future__ import annotations

import os

UNIX_ONLY = frozenset(("fcntl", "pwd", "resource", "termios"))  # modules that Python has nowhere else
ON_WINDOWS = "runs on Linux and macOS, not on Windows: use WSL 2 or a container"


def missing_module(error: ModuleNotFoundError, command: str, extra: str) -> str:
    """Why a module is missing, and the fix."""
    if (error.name or "").partition(".")[0] in UNIX_ONLY:
        return f"`{command}` {ON_WINDOWS}"
    return f"{error}: install it with `pip install 'thinwire[{extra}]'`"


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_windows() -> bool:
    return os.name == "nt"
