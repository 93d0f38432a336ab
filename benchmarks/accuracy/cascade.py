"""`thinwire-bench cascade`: a small tower on the device first, pixels where it is unsure, and both opinions count.

Vectors and bytes of every picture are made once along every way (`cascade_vectors`); the policy is then the server's
own (`cloud.engine.fusion`), so that each confidence costs nothing more. `--wire N` sends N pictures through the real
edge to a real server, over emulated links where some are named, and says where its answers differ.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.accuracy.cascade_fit import fit_fusion
from benchmarks.accuracy.cascade_policy import Answers, Cascade, Rungs, interval_of
from benchmarks.accuracy.cascade_vectors import Seeing
from benchmarks.accuracy.progressive import imagenet_names
from benchmarks.codecs.peers import PEERS
from benchmarks.data.sets import DataError, Dataset, load_dataset
from benchmarks.results.testbed import describe
from benchmarks.stats.paired import paired_difference, relative_top1
from cloud.engine.fusion import FILE, Fusion, read_fusion, write_fusion
from export.photographs.options import add_photograph_options, photograph_options
from thinwire.bundle import load_bundle
from thinwire.imaging import canonical_view, open_image

if TYPE_CHECKING:
    from cloud.networks.clip import Clip

CONFIDENCES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
BARE = ((40, 25), (40, 35), (112, 15), (80, 35))  # sides and qualities of bare AV1 stills near the bytes of a cascade
PROMPT = "a photo of a {}."
FIT_COUNT = 400


def add_commands(commands) -> None:
    """Registers `cascade`; it sets `document`."""
    parser = commands.add_parser(
        "cascade",
        help="a small tower first, pixels where it is unsure: bytes and accuracy against single codecs",
        description="With --fit it first writes the calibration from photographs without labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ladder", required=True, metavar="NAME[:RATE],NAME[:RATE]", help="two bundles, cheap first")
    parser.add_argument("--clip", default="clip-lite", help="CLIP; see thinwire-cloud serve")
    parser.add_argument("--data", nargs="*", default=[], metavar="TAR|DIR", help="labelled images to measure on")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images of each, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--prompt-set", default="7", help="prompt templates")
    parser.add_argument("--confidence", type=float, default=0.97, help="confidence that is reported first")
    parser.add_argument("--rivals", nargs="*", default=[], metavar="BUNDLE", help="other single codecs to compare with")
    parser.add_argument("--fit", action="store_true", help="write the first bundle's fusion.json, from --images")
    parser.add_argument("--count", type=int, default=FIT_COUNT, help="photographs for --fit")
    parser.add_argument("--wire", type=int, default=0, metavar="N", help="send N images of each set to a real server")
    parser.add_argument("--links", default="", metavar="NAME,...", help="with --wire: time answers over these links")
    add_photograph_options(parser)
    parser.set_defaults(document=document)
    parser.add_argument("--json", metavar="PATH", help="also write the JSON document to PATH")


def document(args: argparse.Namespace, words: Sequence[str]) -> dict[str, object]:
    """What the command measured. Raises `DataError` and what opening bundles and the CLIP raises."""
    from cloud.engine.text_heads import HeadCache
    from cloud.networks.clip import load_clip
    from cloud.networks.torch_runtime import served_runner

    if not 0 < args.confidence < 1:
        raise DataError(f"--confidence {args.confidence}: a number between 0 and 1")
    packs = [load_dataset(place, args.limit, args.seed) for place in args.data]  # before minutes of fitting
    rungs, clip = Rungs.parse(args.ladder), load_clip(args.clip)
    rivals = [load_bundle(name) for name in args.rivals]
    bundles = {bundle.model_id: bundle for bundle in (rungs.first, rungs.second, *rivals)}
    runner, heads = served_runner(clip, list(bundles.values()), "fp32"), HeadCache(clip)
    started = time.monotonic()
    if args.fit:
        _fit(args, rungs, clip, runner, heads)
    fusion = read_fusion(rungs.first, clip.id)
    if fusion is None:
        raise DataError(f"{rungs.first.path / FILE}: holds no calibration for {clip.id}: add --fit and --images SOURCE")
    sets = {data.name: _measure(args, data, rungs, rivals, clip, runner, heads, fusion) for data in packs}
    return {
        "benchmark": "cascade",
        "sets": sets,
        "confidence": args.confidence,
        "ladder": [f"{rungs.first.name}:{rungs.first_rate}", f"{rungs.second.name}:{rungs.second_rate}"],
        "clip": clip.id,
        "command": shlex.join(["thinwire-bench", *words]),
        "testbed": describe(),
        "wall_s": round(time.monotonic() - started, 1),
    }


# ---------------------------------------------------------------- the calibration


def _fit(args: argparse.Namespace, rungs: Rungs, clip: Clip, runner, heads) -> None:
    """Photographs that the first bundle was not made from, if its card tells which these are."""
    from export.student.photographs import not_learnt_from

    photographs = photograph_options(args).open()
    photographs.finish_index()
    ids = not_learnt_from(rungs.first, photographs, args.count, args.seed)
    images = [photographs.stored(photo) for photo in ids]
    views, originals = _views(images, rungs, clip)
    names = imagenet_names()
    texts = heads.load(tuple(names), (PROMPT,)).classes
    rates = list(rungs.first.rates)
    with _bar("photographs", len(views) * (2 + len(rates) + len(rungs.second_rates))) as tick:
        seeing = Seeing(clip, runner, views, tick)
        first = seeing.bundle(rungs.first, rates)
        second = seeing.bundle(rungs.second, rungs.second_rates)
        wanted = seeing.pictures(originals)
    sizes = {level: (float(sent.sizes.mean()), sent.vectors) for level, sent in second.items()}
    own = {level: sent.vectors for level, sent in first.items()}
    try:
        seconds, titles = {rungs.second.model_id: sizes}, {rungs.second.model_id: rungs.second.name}
        fusion = fit_fusion(own, seconds, wanted, texts, clip.logit_scale, titles, args.seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    about = {
        "data": photographs.described(),
        "date": datetime.date.today().isoformat(),
        "images": len(views),
        "label_sets": f"names of ImageNet, {PROMPT!r}, drawn by seed {args.seed}",
    }
    path = write_fusion(rungs.first, clip.id, fusion, about)
    print(f"thinwire-bench: {path}", file=sys.stderr)


def _views(images: Sequence[bytes], rungs: Rungs, clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Files → the views of the largest bundle (N, H, W, 3), and the CLIP's own."""
    size = max((rungs.first.input_size, rungs.second.input_size))
    opened = [open_image(data, "image") for data in images]
    views = np.stack([canonical_view(image, *size) for image in opened])
    return views, np.stack([canonical_view(image, clip.image_height, clip.image_width) for image in opened])


# ---------------------------------------------------------------- measuring


def _measure(args, data: Dataset, rungs: Rungs, rivals, clip: Clip, runner, heads, fusion: Fusion) -> dict[str, object]:
    from thinwire.labels import resolve_templates

    head = heads.load(data.labels, resolve_templates(args.prompt_set))
    targets = np.array([item.target for item in data.items])
    views, originals = _views([data.read(item) for item in data.items], rungs, clip)
    rates = list(rungs.first.rates)
    ways = 2 + len(rates) + len(rungs.second_rates) + len(BARE) + sum(len(bundle.rates) for bundle in rivals)
    with _bar(data.name, len(views) * ways) as tick:
        seeing = Seeing(clip, runner, views, tick)
        whole = seeing.pictures(originals)
        first = seeing.bundle(rungs.first, rates)
        second = seeing.bundle(rungs.second, rungs.second_rates)
        single = {f"{rungs.first.name} {rate}": first[rungs.first.rates[rate]] for rate in rates}
        single |= {f"{rungs.second.name} {rate}": second[rungs.second.rates[rate]] for rate in rungs.second_rates}
        for bundle in rivals:
            of_rival = seeing.bundle(bundle, list(bundle.rates))
            single |= {f"{bundle.name} {rate}": of_rival[level] for rate, level in bundle.rates.items()}
        for side, quality in BARE:
            single[f"bare AV1 {side}px quality {quality}"] = seeing.peer(PEERS["av1"], side, quality)

    def right(vectors: np.ndarray) -> np.ndarray:
        return head.similarities(vectors).argmax(1) == targets

    reference = right(whole)
    alone = {name: Answers(right(sent.vectors), sent.sizes) for name, sent in single.items()}
    cascade = Cascade(rungs, fusion, head, first[rungs.level], second)
    points = {}
    for confidence in sorted({*CONFIDENCES, args.confidence}):
        took = cascade.answers(confidence, targets)
        points[confidence] = {
            "confidence": confidence,
            **_row(took.answers, reference),
            "needed_pixels": round(float(took.asked.mean()), 4),
            "against": _against(took.answers, alone),
        }
    found: dict[str, object] = {
        "n": len(targets),
        "labels": len(data.labels),
        "sha256": data.sha256,
        "uncompressed_top1": round(float(reference.mean()), 4),
        "reported": points[args.confidence],
        "cascade": list(points.values()),
        "single": {
            name: {**_row(each, reference), "encode_cpu_ms": round(single[name].cpu_ms, 2)}
            for name, each in alone.items()
        },
        "fusion": [cascade.fused(level, targets) for level in sorted(second)],
    }
    if args.wire:
        from benchmarks.accuracy.cascade_wire import over_the_wire

        found["wire"] = over_the_wire(args, data, rungs, cascade.answers(args.confidence, targets), head)
    return found


def _row(answers: Answers, reference: np.ndarray) -> dict[str, object]:
    ratio, interval = relative_top1(answers.right, reference)
    return {
        "bytes_mean": round(answers.mean_bytes, 1),
        "top1": round(float(answers.right.mean()), 4),
        "top1_relative": None if ratio is None else round(ratio, 4),
        "top1_relative_ci95": None if interval is None else [round(each, 4) for each in interval],
    }


def _against(took: Answers, alone: dict[str, Answers]) -> dict[str, object]:
    """Top-1 of the cascade minus that of each single codec at equal mean bytes, with 95 % paired bootstrap intervals.

    Between two points of a codec, each image goes one or the other way in the shares that give that mean: its top-1 is
    the weighted mean of both. A codec with no point of as few bytes is left out.
    """
    found = {}
    for codec in dict.fromkeys(_codec_of(name) for name in alone):
        points = sorted(
            (each for name, each in alone.items() if _codec_of(name) == codec), key=lambda each: each.mean_bytes
        )
        mixed = _at_bytes(points, took.mean_bytes)
        if mixed is not None:
            found[codec] = interval_of(*paired_difference(took.right.astype(float), mixed))
    return found


def _codec_of(name: str) -> str:
    return "bare AV1" if name.startswith("bare ") else name.rpartition(" ")[0]


def _at_bytes(points: Sequence[Answers], mean_bytes: float) -> np.ndarray | None:
    """float (N,): how often right, at the best mixture of points that takes `mean_bytes`; None where all take more."""
    below = [each for each in points if each.mean_bytes <= mean_bytes]
    if not below:
        return None
    best = max(below, key=lambda each: each.right.mean()).right.astype(float)
    for low in below:
        for high in points:
            if high.mean_bytes > mean_bytes:
                share = (mean_bytes - low.mean_bytes) / (high.mean_bytes - low.mean_bytes)
                mixed = (1 - share) * low.right + share * high.right
                best = max(best, mixed, key=np.mean)
    return best


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="picture", file=sys.stderr) as bar:
        yield bar.update
