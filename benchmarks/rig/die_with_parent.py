"""Runs a command that does not outlive the process that started it: `python -I die_with_parent.py GRACE_S COMMAND...`.

Standard input is a pipe of which the parent alone holds the other end. When that end closes, because the parent is done
or because it was killed (SIGKILL leaves no chance to clean up), the command gets SIGTERM, and SIGKILL when it is
still there GRACE_S seconds later. Exits with the command's code, 128 + N when signal N ended it. Standard library only:
it starts in milliseconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(grace_s: float, command: list[str]) -> int:
    """Runs `command` to its end, or until standard input closes; returns its exit code."""
    let_go = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C reaches the command by itself, as part of the group
        signal.signal(number, lambda *_: let_go.set())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch_parent() -> None:
        os.read(0, 1)  # nothing is ever sent: this returns when the pipe's other end is gone
        let_go.set()

    def stop() -> None:
        let_go.wait()
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=watch_parent, daemon=True).start()
    threading.Thread(target=stop, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
