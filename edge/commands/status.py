"""`thinwire-edge status`: how a run does, for people and for monitoring."""

from __future__ import annotations

import argparse
import json
from datetime import datetime

from edge.field.spool_file import spool_facts


def status(args: argparse.Namespace) -> int:
    """Returns the exit code. Raises `SpoolError`."""
    facts = spool_facts(args.spool)
    if args.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):18} {_shown(name, value)}")
    return 0


def _shown(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {each}" for key, each in value.items()) or "none"
    if name == "noted_at" and isinstance(value, float):
        return f"{datetime.fromtimestamp(value):%Y-%m-%d %H:%M:%S}"
    return "none" if value is None else str(value)
