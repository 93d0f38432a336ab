"""Results that a receiver refuses: kept in a file by name, so that one of them never blocks those behind it.

A receiver that is down, busy or limits the rate takes the same result later: the output pauses. A refusal of the result
itself (HTTP 400, 413, 422, ...; MQTT 5 "payload format invalid") would come again for ever: the result goes to
`SPOOL.refused.jsonl` and the output goes on. A refusal that may concern the address or the login (HTTP 401, 403, 404,
...; MQTT 5 "not authorized") counts as one of the result only if the receiver takes, or looks into, a later one of the
same batch. Else nothing is given up, and everything waits in the spool until someone mends the address.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import OutputError
from edge.field.spool import Spool
from thinwire.text import safe_text

BATCH = 32
MAX_FILE_BYTES = 64 << 20  # then the output pauses, as on a full disk


class ResultRefused(OutputError):
    """The receiver is there and does not take this result. of_result: certainly for what is in it."""

    def __init__(self, text: str, of_result: bool) -> None:
        super().__init__(text)
        self.of_result = of_result


@dataclass
class Refusals:
    """What one output was refused in this run. path: the file that holds it, once there is something."""

    count: int = 0
    why: str = ""
    path: Path | None = field(default=None)

    def keep(self, spool: Spool, output: str, line: str, error: ResultRefused) -> None:
        """On disk when this returns. Raises `OutputError`."""
        path = spool.path.with_name(f"{spool.path.name}.refused.jsonl")
        record = {"output": output, "refused_at": time.time(), "why": safe_text(str(error)), "result": json.loads(line)}
        try:
            with open(path, "ab") as file:
                if file.tell() > MAX_FILE_BYTES:
                    raise OutputError(
                        f"{path}: holds {MAX_FILE_BYTES >> 20} MiB of refused results: read it, then move it away"
                    )
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise OutputError(f"{path}: cannot be written ({failure.strerror or failure})") from failure
        self.count, self.why, self.path = self.count + 1, str(error), path


def deliver_each(spool: Spool, output: str, send: Callable[[str], None], refusals: Refusals) -> int:
    """Gives `send` the results that `output` has not confirmed, one by one; returns how many are settled.

    send: returns once the receiver has the result. Raises `ResultRefused`, or `OutputError` for what ends the attempt.
    """
    rows, _ = spool.undelivered(output, limit=BATCH)
    held: list[tuple[int, str, ResultRefused]] = []

    def give_up_held() -> None:
        for number, line, error in held:
            refusals.keep(spool, output, line, error)
            spool.delivered(output, number, {})
        held.clear()

    for number, line in rows:
        try:
            send(line)
        except ResultRefused as error:
            held.append((number, line, error))
            if error.of_result:
                give_up_held()
            continue
        give_up_held()
        spool.delivered(output, number, {})
    if held:
        raise held[0][2]
    return len(rows)
