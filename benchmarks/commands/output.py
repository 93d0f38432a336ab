"""Where a command's JSON document goes: to stdout as one line, to a file, and to a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def deliver(document: Mapping[str, Any], json_path: str | None, plot_path: str | None) -> int:
    """Writes the document; returns the exit code: 0, 1 where a file cannot be written, 3 where some images failed.

    The line on stdout is printed in every case: the measurement took long, and a bad path must not lose it.
    """
    line = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        if json_path:
            Path(json_path).parent.mkdir(parents=True, exist_ok=True)
            Path(json_path).write_text(line + "\n", encoding="utf-8")
        if plot_path:
            _plot(document, Path(plot_path))
    except OSError as error:
        print(f"thinwire-bench: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # a format that matplotlib lacks
        print(f"thinwire-bench: {plot_path}: {error}", file=sys.stderr)
        return 1
    finally:
        print(line, flush=True)
    return 3 if any(row["failed"] for row in document.get("points", document.get("results", ()))) else 0


def _plot(document: Mapping[str, Any], path: Path) -> None:
    from benchmarks.report.plot import plot

    title = f"{document['data']['name']}, {document['n']} images, CLIP {document['clip']}"
    plot(document["points"], path, title)
