"""Trains on a GPU that is lent for minutes, and leaves a checkpoint small enough to bring back.

    python scripts/gpu_session.py layered --images photos.tar --limit-minutes 8 --out "$OUT"

On the machine with the GPU, in a copy of the clone with the photographs beside it. Photographs are decoded once, by all
cores, before the clock of the training starts; what is then left of the limit, less a reserve to write in, is trained.
OUT gets checkpoint.pt (weights in float16, no optimiser; at most 16 MiB), settings.json and the logs. At home, with
OUT as the run folder: `thinwire-export bundle OUT --out BUNDLE`, or `thinwire-export train FAMILY --warm-start OUT`.
Nothing here has met a GPU yet: it was run on a CPU, with `--preset cpu`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from export.cli import main as export
from export.photographs.options import add_photograph_options, photograph_options
from export.training_loop import load_checkpoint

MOST_BYTES = 16 << 20
RESERVE_S = 40.0  # to load networks, write the checkpoint and slim it
KEPT = ("settings.json", "log.jsonl", "held_out.jsonl")


def slim(checkpoint: Path, target: Path) -> None:
    """Writes what a bundle or a warm start needs of a checkpoint: weights as float16, multipliers, progress.

    Raises SystemExit when even that is larger than 16 MiB.
    """
    state = load_checkpoint(checkpoint, "cpu")
    kept = {key: value for key, value in state.items() if key not in ("optimiser", "generator")}
    for part in ("analysis", "synthesis", "rate"):
        kept[part] = {name: value.half() if value.is_floating_point() else value for name, value in state[part].items()}
    torch.save(kept, target)
    if target.stat().st_size > MOST_BYTES:
        raise SystemExit(
            f"{target} takes {target.stat().st_size >> 20} MiB, more than {MOST_BYTES >> 20}: a smaller net"
        )


def decode_all(photographs, until: float) -> int:
    """Decodes photographs into the cache until all are there or the time has come; returns how many."""
    ids, done = photographs.all_ids(), 0
    for start in range(0, len(ids), 256):
        if time.monotonic() > until:
            break
        photographs.ahead(ids[start + 256 : start + 1024])
        done += len(photographs.take(ids[start : start + 256]))
    return done


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("--limit-minutes", type=float, default=8.0, help="of the whole call")
    parser.add_argument("--preset", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--clip", nargs="+", action="extend", default=[], help="teachers, as of thinwire-export train")
    parser.add_argument("--steps", type=int, help="stop after this many steps instead: for trying the script")
    parser.add_argument("--out", type=Path, required=True)
    add_photograph_options(parser)
    args = parser.parse_args(argv)
    limit_s = 60 * args.limit_minutes
    photographs = photograph_options(args).open()
    count = decode_all(photographs, started + 0.4 * limit_s)
    photographs.close()
    spent_s = time.monotonic() - started
    print(f"{count} of {len(photographs)} photographs decoded in {spent_s:.0f} s", flush=True)
    minutes = max(0.05, (limit_s - spent_s - RESERVE_S) / 60)
    work = args.out / "work"
    words = ["train", args.family, "--preset", args.preset, "--out", str(work), "--no-bundle"]
    words += ["--steps", str(args.steps)] if args.steps else ["--minutes", f"{minutes:.2f}"]
    words += ["--clip", *args.clip] if args.clip else []
    words += ["--images", *args.images] if args.images else []
    words += ["--cache-gb", str(args.cache_gb)]
    export(words)
    slim(work / "checkpoint.pt", args.out / "checkpoint.pt")
    for name in KEPT:
        if (work / name).exists():
            shutil.copy(work / name, args.out / name)
    shutil.rmtree(work)
    print(f"{args.out / 'checkpoint.pt'}: {(args.out / 'checkpoint.pt').stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
