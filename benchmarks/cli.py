"""`thinwire-bench`: parses a command line and hands it to the command, which lives beside what it does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.accuracy import cascade, compare, progressive
from benchmarks.commands import eval as eval_command
from benchmarks.commands import rate_accuracy, study, timing
from benchmarks.commands.output import deliver
from benchmarks.system import field, frame_search, ray_serve, runtimes, service_load, watching
from benchmarks.timing import coder
from thinwire.errors import ThinwireError
from thinwire.files import told
from thinwire.text import safe_streams

COMMANDS = (
    eval_command,
    rate_accuracy,
    study,
    timing,
    coder,
    compare,
    progressive,
    cascade,
    service_load,
    runtimes,
    field,
    watching,
    frame_search,
    ray_serve,
)
"""Each registers its commands by `add_commands`. A command sets `document`, (args, words) to a JSON document that is
delivered here, or `run`, args to an exit code."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinwire-bench", description="Accuracy, bytes and time over the real wire.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `thinwire-bench`; returns the exit code: 0 measured, 1 failed, 2 wrong use, 3 some images failed."""
    safe_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    try:
        if hasattr(args, "run"):
            return args.run(args)
        document = args.document(args, words)
    except ThinwireError as error:
        print(f"thinwire-bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"thinwire-bench: {error}: install the benchmarks with `pip install 'thinwire[bench]'`",
            file=sys.stderr,
        )
        return 1
    except OSError as error:  # files that cannot be read or written
        print(f"thinwire-bench: {told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("thinwire-bench: interrupted", file=sys.stderr)
        return 130
    return deliver(document, getattr(args, "json", None), getattr(args, "plot", None))


if __name__ == "__main__":
    sys.exit(main())
