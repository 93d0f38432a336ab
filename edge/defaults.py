"""What the edge does when it is not told; here alone, so that library and command line agree."""

from __future__ import annotations

DEFAULT_BUNDLE = "layered"
DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_TOP_K = 5
DEFAULT_IN_FLIGHT = 4

OK, SOME_FAILED, CANNOT_RUN, INTERRUPTED = 0, 1, 2, 130
"""Exit codes of every command."""
