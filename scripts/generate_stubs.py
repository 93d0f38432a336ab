"""Generates `thinwire/v1/*_pb2*` from `proto/`. With --check, compares instead and exits 1 on a difference.

    python scripts/generate_stubs.py [--check]

Needs grpcio-tools 1.80: code of later generators refuses older protobuf runtimes, and another generator gives other
bytes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = "1.80"


def generate(out: Path) -> list[Path]:
    """Writes the stubs of every .proto below `proto/` under `out`; returns their paths relative to `out`."""
    import grpc_tools
    from grpc_tools import protoc

    version = importlib.metadata.version("grpcio-tools")
    if not version.startswith(GENERATOR + "."):
        raise SystemExit(
            f"stubs are made with grpcio-tools {GENERATOR}, found {version}: pip install 'grpcio-tools=={GENERATOR}.*'"
        )
    sources = sorted(path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*") if path.suffix in (".py", ".pyi"))


def differences() -> list[str]:
    """Names of committed stubs that are missing, stale or no longer generated; empty when all is in order."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {path.as_posix(): (Path(folder) / path).read_bytes() for path in generate(Path(folder))}
    kept = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "thinwire").rglob("*_pb2*")
        if path.suffix in (".py", ".pyi")
    }
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed stubs, write nothing")
    if not parser.parse_args().check:
        for path in generate(ROOT):
            print(path)
        return 0
    stale = differences()
    for name in stale:
        print(f"{name} differs from proto/: run python scripts/generate_stubs.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
