"""What the edge does when it is not told; here alone, so that library and command line agree."""

from __future__ import annotations

from thinwire.contract import DEFAULT_SERVER, DEFAULT_TOP_K

__all__ = [
    "CANNOT_RUN",
    "DEFAULT_BUNDLE",
    "DEFAULT_IN_FLIGHT",
    "DEFAULT_SERVER",
    "DEFAULT_TIMEOUT_S",
    "DEFAULT_TOP_K",
    "INTERRUPTED",
    "OK",
    "SOME_FAILED",
]

DEFAULT_BUNDLE = "still"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_IN_FLIGHT = 4

OK, SOME_FAILED, CANNOT_RUN, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every command."""
