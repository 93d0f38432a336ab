"""Whether a study's report still is what its points would give, so that a study that measured nothing writes nothing.

Bootstraps and figures take a minute; a second run of a study should take seconds. OUT/report.json says what the report
was made of: a hash of every JSON file in OUT's folders (points, hierarchies), of this package's code and of the
versions of the libraries, and a hash of each file that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.results.testbed import describe
from thinwire.files import write_whole

NAME = "report.json"
CODE = Path(__file__).resolve().parents[1]


def stamp(out: Path, files: Mapping[str, Path]) -> None:
    """Remembers what the report, `files` by name, was made of."""
    written = {name: [str(path.relative_to(out)), _hash([path])] for name, path in files.items()}
    write_whole(out / NAME, json.dumps({"made_of": _made_of(out), "files": written}, indent=1) + "\n")


def unchanged(out: Path) -> dict[str, Path] | None:
    """The report's files by name; None where there is none, or where it or what it was made of has changed."""
    try:
        kept = json.loads((out / NAME).read_text())
        files = {name: out / path for name, (path, _) in kept["files"].items()}
        same = all(_hash([files[name]]) == digest for name, (_, digest) in kept["files"].items())
        return files if same and kept["made_of"] == _made_of(out) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _made_of(out: Path) -> str:
    code = (path for path in CODE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    versions = json.dumps(describe()["versions"], sort_keys=True)
    return hashlib.sha256(f"{_hash(out.glob('*/*.json'))} {_hash(code)} {versions}".encode()).hexdigest()


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
