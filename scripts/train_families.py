"""Trains the codec families with equal minutes, one after another, for `thinwire-bench compare`.

    python scripts/train_families.py --minutes 40 --out runs/equal
    thinwire-bench compare --bundles runs/equal/*/bundle --data ../shared/data/eval-caltech101.tar --json compare.json

Resumable: run again, a finished family is left as it is and an interrupted one goes on. All get the same preset, seed,
threads and minutes; `linear` is a closed form and takes none of them, `linear-learned` gives all of its minutes to the
decoder. A machine that is busy at one family and idle at the next is not
an equal budget: log.jsonl states images a second.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export.cli import main as export

FAMILIES = ("linear", "linear-learned", "conv", "vae", "vq", "layered")


def words(name: str, args: argparse.Namespace) -> list[str]:
    """The `thinwire-export train` command line of one family, or of FAMILY-DECODER."""
    family, _, decoder = name.partition("-")
    chosen = ["--decoder", decoder] if decoder else []
    budget = ["--minutes", str(args.minutes)] if args.steps is None else ["--steps", str(args.steps)]
    rest = ["--preset", args.preset, "--seed", str(args.seed), "--threads", str(args.threads)]
    return ["train", family, *chosen, *budget, *rest, "--out", str(args.out / name)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"default: {' '.join(FAMILIES)}")
    parser.add_argument("--minutes", type=float, default=40.0, help="of each family")
    parser.add_argument("--steps", type=int, help="steps of each instead: for trying the script")
    parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/equal"), help="one run folder for each family")
    args = parser.parse_args(argv)
    for name in args.families or FAMILIES:
        if (args.out / name / "bundle" / "card.json").exists():
            print(f"{args.out / name}: finished before")
        else:
            export(words(name, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
