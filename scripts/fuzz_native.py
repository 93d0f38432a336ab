"""Fuzzes what native/ does with a stranger's bytes, with AddressSanitizer and UndefinedBehaviorSanitizer.

    python scripts/fuzz_native.py [--target coder|packer] [--runs 10000000] [--seed 0]

Needs clang with libFuzzer (Debian: apt-get install clang libclang-rt-14-dev).

coder: each run is a packet of one of 64 random coders, real and then damaged in most cases (native/fuzz.c). packer:
each run is a packed still or an AV1 frame (native/fuzz_packer.c). Reading or writing out of bounds, undefined
behaviour, a leak, a run of over 10 s, or symbols that the encoder does not turn back into the same bytes end it with
exit code 1 and leave the input in build/fuzz. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "fuzz"
SANITIZERS = "-fsanitize=fuzzer,address,undefined"


TARGETS = {
    "coder": ("coder.c", "fuzz.c"),
    "packer": (
        "av1_coefficients.c",
        "av1_header.c",
        "av1_range.c",
        "av1_walk.c",
        "symbol_model.c",
        "still_packer.c",
        "fuzz_packer.c",
    ),
}


def build(target: str) -> Path:
    """The fuzz target's program. Raises `SystemExit` when it cannot be built."""
    clang = shutil.which("clang")
    if clang is None:
        raise SystemExit("fuzz_native: clang is missing (Debian: apt-get install clang libclang-rt-14-dev)")
    FOLDER.mkdir(parents=True, exist_ok=True)
    program = FOLDER / "fuzz"
    sources = [ROOT / "native" / name for name in TARGETS[target]]
    flags = ["-std=c11", "-g", "-O1", SANITIZERS, "-fno-sanitize-recover=all"]
    done = subprocess.run([clang, *flags, *sources, "-o", program], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"fuzz_native: it does not compile with {SANITIZERS}:\n{done.stderr[-2000:]}")
    return program


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, default="coder")
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    args = parser.parse_args(argv)
    options = ["-max_len=4096", "-timeout=10", f"-runs={args.runs}", f"-seed={args.seed}", "-print_final_stats=1"]
    started = time.monotonic()
    fuzzing = subprocess.Popen(
        [build(args.target), *options], cwd=FOLDER, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    counts = [line for line in fuzzing.stdout if line.startswith("accepted ")]
    code = fuzzing.wait()
    accepted, refused = (int(word) for word in counts[0].replace(",", "").split()[1::2]) if counts else (None, None)
    report = {"runs": args.runs, "accepted": accepted, "refused": refused, "failed": code != 0}
    print(json.dumps({**report, "wall_s": round(time.monotonic() - started)}), flush=True)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
