"""`thinwire-export`: train codecs and the shipped CLIP, and write them as bundles."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from thinwire.text import safe_streams

MODELS = Path(__file__).resolve().parents[1] / "thinwire" / "models"

EPILOG = """examples:
  thinwire-export train conv --preset cpu --minutes 40 --out runs/conv   # resumable: run it again to go on
  thinwire-export train linear           # a closed form, about a minute; --decoder learned trains a decoder for it
  thinwire-export bundle runs/conv --out bundles/conv
  thinwire-export card bundles/conv results.json        # results.json is what the benchmark `eval` wrote
  thinwire-export embedding --clip clip-lite --out bundles/embedding     # or NAME:TAG, NAME:/path, an open_clip folder
  thinwire-export still --out bundles/still              # bare AV1 stills: no network on the device, no training
  thinwire-export adapt --bundle layered --rates tiny low --minutes 10   # CLIP learns to read a codec: an adapter
  thinwire-export clip-lite --out bundles/clip-lite                      # needs wordnet-base and the extra `export`
  thinwire-export clip-lite-eval thinwire/models/clip-lite
  thinwire-export list
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinwire-export", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a codec family, or resume a run, and write its bundle")
    train.add_argument("family")
    train.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    train.add_argument("--minutes", type=float, help="training time (default: the preset's)")
    train.add_argument("--steps", type=int, help="stop after this many steps instead")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--decoder", metavar="NAME", help="another decoder of the family, such as linear's `learned`")
    train.add_argument("--warm-start", type=Path, metavar="RUN", help="start from the weights of this finished run")
    train.add_argument("--out", type=Path, help="run folder (default runs/FAMILY); the bundle is written to OUT/bundle")

    bundle = commands.add_parser("bundle", help="write a bundle from a run's checkpoint")
    bundle.add_argument("run", type=Path)
    bundle.add_argument("--out", type=Path, required=True)
    bundle.add_argument("--count", type=int, default=3000, help="training photographs over which tables are counted")

    card = commands.add_parser(
        "card", help="write the figures of `thinwire-bench eval --json FILE` into a bundle's card"
    )
    card.add_argument("bundle", type=Path)
    card.add_argument("results", type=Path, nargs="+", metavar="FILE")

    embedding = commands.add_parser("embedding", help="write the bundle of a CLIP's own image tower: no training")
    embedding.add_argument("--clip", default="clip-lite", help="clip-lite, NAME:TAG, NAME:/path/to/checkpoint, folder")
    embedding.add_argument("--out", type=Path, required=True)
    embedding.add_argument("--count", type=int, default=3000, help="training photographs for axes, steps and tables")

    still = commands.add_parser("still", help="write the bundle of bare AV1 stills: no network, no training")
    still.add_argument("--out", type=Path, required=True)
    still.add_argument("--count", type=int, default=96, help="training photographs over which frames are compared")

    adapt = commands.add_parser("adapt", help="adapt a CLIP's image tower to a bundle's pictures at low rates (LoRA)")
    adapt.add_argument("--bundle", default="layered", metavar="NAME|PATH")
    adapt.add_argument("--clip", default="clip-lite", help="clip-lite, NAME:TAG, NAME:/path/to/checkpoint, folder")
    adapt.add_argument("--rates", nargs="+", metavar="RATE", default=[], help="rates the adapter is for (default: all)")
    adapt.add_argument(
        "--minutes", type=float, default=10.0, help="training time in minutes, without the time to decode views"
    )
    adapt.add_argument("--steps", type=int, help="stop after this many steps instead")
    adapt.add_argument("--count", type=int, default=5000, help="decoded views to learn from, kept in the cache")
    adapt.add_argument("--rank", type=int, default=8)
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--threads", type=int, default=1)
    adapt.add_argument("--out", type=Path, help="run folder (default runs/adapt-BUNDLE); resumable; gets OUT/adapter")

    clip = commands.add_parser("clip-lite", help="train the shipped CLIP from its teachers")
    clip.add_argument("--out", type=Path, default=MODELS / "clip-lite")
    clip.add_argument("--regulariser", type=float, default=0.0, help="weight of the term of arXiv 2310.00927")
    clip.add_argument("--distil-minutes", type=float, default=45.0)
    clip.add_argument("--joint-minutes", type=float, default=20.0)
    clip.add_argument("--threads", type=int, default=2)

    evaluate = commands.add_parser("clip-lite-eval", help="zero-shot and retrieval figures of an open_clip folder")
    evaluate.add_argument("folder", type=Path, nargs="?", default=MODELS / "clip-lite")
    evaluate.add_argument(
        "--teacher-text", action="store_true", help="measure with MiniLM as text tower: what distillation lost"
    )

    listing = commands.add_parser("list", help="list families and bundles: sizes, operations, rates, measured figures")
    listing.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="more bundle folders to list")
    return parser


def run_train(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from export.bundles import make_bundle
    from export.families import FAMILIES
    from export.train import PRESETS, train

    if args.family == "embedding":
        raise SystemExit(
            "family embedding is not trained: use `thinwire-export embedding --clip clip-lite --out FOLDER`"
        )
    if args.family not in FAMILIES:
        raise SystemExit(f"unknown family {args.family!r}; choose from {', '.join(FAMILIES)}")
    settings = replace(PRESETS[args.preset], steps=args.steps, seed=args.seed, threads=args.threads)
    if args.minutes is not None:
        settings = replace(settings, minutes=args.minutes)
    family = FAMILIES[args.family]
    if args.decoder is not None and args.decoder not in family.decoders:
        own = ", ".join(family.decoders) or "none beside its own"
        raise SystemExit(f"family {args.family} has no decoder {args.decoder!r}; --decoder takes: {own}")
    family = family.with_decoder(args.decoder)
    run = args.out or Path("runs") / "-".join(filter(None, (args.family, args.decoder)))
    train(family, settings, run, args.warm_start)
    print(make_bundle(family, run, run / "bundle"))


def run_bundle(args: argparse.Namespace) -> None:
    from export.bundles import make_bundle
    from export.families import FAMILIES

    for needed in ("settings.json", "checkpoint.pt"):
        if not (args.run / needed).exists():
            raise SystemExit(
                f"{args.run / needed} is missing: `thinwire-export train FAMILY --out {args.run}` writes it"
            )
    settings = args.run / "settings.json"
    said = json.loads(settings.read_text())
    family = FAMILIES[said["family"]].with_decoder(said.get("decoder"))
    print(make_bundle(family, args.run, args.out, args.count))


def run_embedding(args: argparse.Namespace) -> None:
    from export.bundles import make_embedding_bundle

    try:
        folder = make_embedding_bundle(args.clip, args.out, args.count)
    except (ValueError, RuntimeError, OSError) as error:  # what open_clip raises for absent models and weights
        raise SystemExit(f"thinwire-export embedding: {error}") from error
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(folder)


def run_still(args: argparse.Namespace) -> None:
    from export.still import make_still_bundle
    from thinwire.errors import ThinwireError

    try:
        print(make_still_bundle(args.out, args.count))
    except (ThinwireError, OSError) as error:
        raise SystemExit(f"thinwire-export still: {error}") from error


def run_adapt(args: argparse.Namespace) -> None:
    from export.adapt import AdaptSettings, adapt
    from thinwire.errors import ThinwireError

    fields = ("bundle", "clip", "minutes", "steps", "count", "rank", "seed", "threads")
    settings = AdaptSettings(**{name: getattr(args, name) for name in fields}, rates=tuple(args.rates))
    try:
        adapter = adapt(settings, args.out or Path("runs") / f"adapt-{Path(args.bundle).name}")
    except ModuleNotFoundError as error:
        raise SystemExit(f"thinwire-export adapt: {error}: run `pip install 'thinwire[export]'`") from error
    except (ThinwireError, ValueError, RuntimeError, OSError) as error:
        raise SystemExit(f"thinwire-export adapt: {error}") from error
    for file in sorted(adapter.path.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(adapter.path)


def run_card(args: argparse.Namespace) -> None:
    from export.bundles import record_metrics

    try:
        record_metrics(args.bundle, [json.loads(path.read_text()) for path in args.results])
    except (ValueError, KeyError, OSError) as error:
        raise SystemExit(f"thinwire-export card: {error}") from error


def run_clip_lite(args: argparse.Namespace) -> None:
    from export.clip_lite.pipeline import Recipe, build

    recipe = Recipe(
        regulariser=args.regulariser,
        distil_minutes=args.distil_minutes,
        joint_minutes=args.joint_minutes,
        threads=args.threads,
    )
    print(build(recipe, args.out))


def run_evaluate(args: argparse.Namespace) -> None:
    from export.clip_lite.evaluate import Evaluator

    print(json.dumps(Evaluator(args.folder, args.teacher_text).report()))


def run_list(args: argparse.Namespace) -> None:
    from rich.console import Console

    from export.listing import table
    from thinwire.errors import BundleError

    try:
        # A pipe has no width; cells broken at 80 columns would be no table
        Console(width=None if sys.stdout.isatty() else 200).print(table(args.bundles))
    except BundleError as error:
        raise SystemExit(f"thinwire-export list: {error}") from error


def main(argv: list[str] | None = None) -> int:
    safe_streams()
    args = build_parser().parse_args(argv)
    commands = {
        "train": run_train,
        "bundle": run_bundle,
        "embedding": run_embedding,
        "still": run_still,
        "adapt": run_adapt,
        "card": run_card,
        "clip-lite": run_clip_lite,
        "clip-lite-eval": run_evaluate,
        "list": run_list,
    }
    commands[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
