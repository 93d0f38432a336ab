"""Writes `.venv/bin/thinwire-*` launchers: this clone's code on the shared environment. Usage: link_env.py ENV"""

from __future__ import annotations

import shlex
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(env: str) -> None:
    folder = ROOT / ".venv" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module = target.split(":")[0]
        launcher = folder / name
        launcher.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(env + "/bin/python")} -m {module} "$@"\n'
        )
        launcher.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1])
