"""`thinwire-edge status`: how a run does, for people and for monitoring."""

from __future__ import annotations

import argparse
import json

from edge.spool_file import look


def status(args: argparse.Namespace) -> int:
    """Returns the exit code. Raises `SpoolError`."""
    facts = look(args.spool)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        shown = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
        print(f"{name.replace('_', ' '):18} {shown}")
    return 0
