"""Writes requirements-light.lock: of requirements.lock what the extra `demo` needs, at the same versions.

python scripts/light_lock.py [--check]      (in the full environment; --check: exit 1 where it would change)
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FULL, LIGHT = ROOT / "requirements.lock", ROOT / "requirements-light.lock"
EXTRA = "demo"


def needed(extra: str = EXTRA) -> set[str]:
    """Canonical names of all that the base and `extra` of this project bring with them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = [*map(Requirement, project["dependencies"]), Requirement(f"{project['name']}[{extra}]")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        each = todo.pop()
        name = canonicalize_name(each.name)
        if (name, frozenset(each.extras)) in seen:
            continue
        seen.add((name, frozenset(each.extras)))
        if name == project["name"]:
            lines = [line for own in each.extras for line in project["optional-dependencies"][own]]
        else:
            lines = requires(each.name) or []
        for inner in map(Requirement, lines):
            wanted = [""] if not each.extras else sorted(each.extras)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in wanted):
                todo.append(inner)
    return {name for name, _ in seen} - {project["name"]}


def light_lines() -> str:
    names = needed()
    pins = FULL.read_text(encoding="utf-8").splitlines()
    kept = [pin for pin in pins if canonicalize_name(pin.partition("==")[0]) in names]
    missing = names - {canonicalize_name(pin.partition("==")[0]) for pin in kept}
    if missing:
        raise SystemExit(f"light_lock: {', '.join(sorted(missing))} not in {FULL.name}")
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    lines = light_lines()
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if LIGHT.is_file() and LIGHT.read_text(encoding="utf-8") == lines else f"{LIGHT.name}: run {__file__}"
        )
    LIGHT.write_text(lines, encoding="utf-8")
