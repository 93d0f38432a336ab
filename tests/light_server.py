"""A real server of another process, where PyTorch is not installed: `make demo`'s environment where it is there."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.rig.server_process import serving

LIGHT_ENV = "THINWIRE_LIGHT_ENV"


def light_service(*flags: str | os.PathLike[str]) -> AbstractContextManager[str]:
    """Runs `thinwire-cloud serve --runtime onnx` with `flags`; yields its address.

    `make test` names the light environment in THINWIRE_LIGHT_ENV. Without that a process of this environment runs that
    finds neither torch nor what comes with it, and fails if it was loaded all the same.
    """
    python = Path(os.environ.get(LIGHT_ENV, ""), "bin", "python")
    program = (
        [str(python), "-m", "cloud.cli"] if python.is_absolute() else [sys.executable, "-m", "tests.without_torch"]
    )
    words = ["serve", "--port", "0", "--threads", "1", "--runtime", "onnx", *map(str, flags)]
    return serving([*program, *words], timeout_s=120)
