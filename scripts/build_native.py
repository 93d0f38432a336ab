"""Builds thinwire/_coder.abi3.so in this clone, unless it is there and of these sources. Usage: build_native.py

Where it cannot be built (no C compiler, no headers of Python) one line on stderr says so, and thinwire codes in plain
Python: the exit code is 0 all the same. `make setup` and the tests run it; an up-to-date build costs some milliseconds.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from setup import source_hash  # noqa: E402

TARGET = ROOT / "thinwire" / "_coder.abi3.so"
STAMP = ROOT / "build" / "native.stamp"  # what the build is of


def build() -> bool:
    """Returns whether the compiled coder is there now."""
    wanted = f"{source_hash()} {sys.platform} {platform.machine()}"
    stamp = STAMP.read_text() if STAMP.is_file() else ""
    if stamp == wanted and TARGET.is_file():
        return True
    TARGET.unlink(missing_ok=True)  # of other sources, or of another machine
    STAMP.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="native-", dir=STAMP.parent) as name:
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", name, "--build-temp", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        made = sorted(Path(name).rglob("_coder*.so"))
        if not made:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
            reason = lines[-1].strip() if lines else f"setup.py ended with {done.returncode}"
            print(f"the compiled coder was not built, packets are coded in plain Python: {reason}", file=sys.stderr)
            return False
        os.replace(made[0], TARGET)  # whole or not at all, also when two builds meet
    STAMP.write_text(wanted)
    return True


if __name__ == "__main__":
    build()
