"""Progressive answers: calibrating a bundle for a CLIP, and what asking for layers on demand saves.

`thinwire-bench calibrate` computes every image's answer from 1, 2, ... K layers in this process and writes the bundle's
calibration.json. `thinwire-bench progressive` then sends other images through the real edge to a real server, at every
fixed rate and progressively at several confidences. Calibrate on one data set and measure on another: margins measured
on the same images would flatter.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.sets import DataError, Dataset, load_dataset
from benchmarks.data.unlabelled import answered, unlabelled
from benchmarks.stats.paired import hits
from export.photographs.options import add_photograph_options, photograph_options
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view, open_image

if TYPE_CHECKING:
    from cloud.engine.calibration import Calibration
    from edge.line.client import Client
    from thinwire.bundle import Bundle

CONFIDENCES = (0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
BATCH = 8
UNLABELLED = 1500  # photographs, where --limit does not say


def add_commands(commands) -> None:
    """Registers `calibrate` and `progressive`; each sets `run`."""
    calibrate = commands.add_parser(
        "calibrate",
        help="measure how reliable answers from few layers are; write the bundle's calibration.json",
        description="Computes every image's answer from 1, 2, ... layers in this process.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    measure = commands.add_parser(
        "progressive",
        help="bytes and accuracy of progressive answers against every fixed rate",
        description="Starts its own server unless --server names one. The last line on stdout is one JSON document.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for parser in (calibrate, measure):
        parser.add_argument("--bundle", default="layered", metavar="NAME|PATH", help="codec")
        parser.add_argument("--clip", default="clip-lite", help="CLIP; see thinwire-cloud serve")
        parser.add_argument("--prompt-set", default="7", help="prompt templates")
        parser.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
        parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    measure.add_argument("--data", required=True, metavar="TAR|DIR", help="labelled images; see thinwire-bench eval")
    calibrate.add_argument("--data", metavar="TAR|DIR", help="labelled images; see thinwire-bench eval")
    calibrate.add_argument(
        "--labels",
        metavar="A,B,...",
        help="with --images: what will be asked (default: the 1000 classes of ImageNet)",
    )
    add_photograph_options(calibrate)
    measure.add_argument("--server", metavar="HOST:PORT", help="measure against this server")
    measure.add_argument("--confidence", type=float, default=0.97, help="confidence whose figures are reported first")
    measure.add_argument("--json", metavar="PATH", help="also write the JSON document to PATH")
    calibrate.set_defaults(run=_calibrate)
    measure.set_defaults(run=_progressive)


# ---------------------------------------------------------------- calibrate


def layer_logits(data: Dataset, bundle: Bundle, clip, prompt_set: str, seen: Callable[[], None] = lambda: None):
    """float32 (K, N, L): logits of every image of `data` over its labels, from 1 to K layers of `bundle`."""
    from cloud.engine.prepared import Prepared
    from cloud.engine.text_heads import HeadCache
    from cloud.networks.torch_runtime import served_runner
    from edge.encoder import Encoder
    from thinwire.errors import RateError
    from thinwire.labels import resolve_templates

    if len(bundle.coder.layers) < 2:
        raise RateError(f"bundle {bundle.name!r} sends one layer: there is nothing to stop early, and to calibrate")
    encoder, runner = Encoder(bundle), served_runner(clip, [bundle], "fp32")
    head = HeadCache(clip).load(data.labels, resolve_templates(prompt_set))
    rate = list(bundle.rates)[-1]
    layers = bundle.rates[rate]
    out = np.empty((layers, len(data.items), len(data.labels)), np.float32)
    for start in range(0, len(data.items), BATCH):
        packets = []
        for item in data.items[start : start + BATCH]:
            packets.append(encoder.encode_image(data.read(item), rate).packet)
            seen()
        for count in range(1, layers + 1):
            batch = [
                Prepared(bundle.decode(packet.prefix(count)), bundle.name, count, bundle.model_id) for packet in packets
            ]
            cosines = head.similarities(runner.run(batch).embeddings)
            out[count - 1, start : start + len(batch)] = head.logit_scale * cosines
    return out


def _calibrate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from benchmarks.accuracy.calibration_fit import fit
    from cloud.engine.calibration import write_calibration
    from cloud.networks.clip import load_clip
    from thinwire.bundle import load_bundle

    if (args.data is None) == (not args.images):
        raise DataError("calibrate needs --data with labelled images, or --images SOURCE to learn without labels")
    bundle, clip = load_bundle(args.bundle), load_clip(args.clip)
    if args.images:
        data = own_answers(args, clip)
    else:
        data = load_dataset(args.data, args.limit, args.seed)
    with tqdm(total=len(data.items), desc=data.name, unit="image", file=sys.stderr) as bar:
        logits = layer_logits(data, bundle, clip, args.prompt_set, lambda: bar.update())
    targets = np.array([item.target for item in data.items])
    try:
        calibration = fit(logits, targets)
    except ValueError as error:
        raise DataError(str(error)) from error
    path = write_calibration(bundle, clip.id, calibration, data.name, len(data.items))
    document = {
        "benchmark": "calibrate",
        "path": str(path),
        "clip": clip.id,
        "data": {"name": data.name, "sha256": data.sha256, "n": len(data.items), "labels": len(data.labels)},
        "layers": [_described(calibration, logits, targets, count) for count in range(1, len(logits))],
    }
    print(json.dumps(document, separators=(",", ":")), flush=True)
    return 0


def own_answers(args: argparse.Namespace, clip) -> Dataset:
    """Photographs without labels; what the CLIP itself says of each uncompressed one counts as right.

    So the calibration tells how far an answer from few layers is the one that the whole picture would get.
    """
    from cloud.engine.text_heads import HeadCache
    from thinwire.labels import resolve_templates

    photographs = photograph_options(args).open(clip.image_height)
    labels = [label.strip() for label in args.labels.split(",") if label.strip()] if args.labels else imagenet_names()
    data = unlabelled(photographs, labels, args.limit or UNLABELLED, args.seed)
    head = HeadCache(clip).load(data.labels, resolve_templates(args.prompt_set))
    kept, targets = [], []
    for start in range(0, len(data.items), BATCH):
        views, places = [], []
        for place in range(start, min(start + BATCH, len(data.items))):
            item = data.items[place]
            try:
                image = open_image(data.read(item), item.name)
            except ThinwireError as error:  # a broken picture is no reason to stop
                print(f"thinwire-bench: left out: {error}", file=sys.stderr)
                continue
            views.append(canonical_view(image, clip.image_height, clip.image_width))
            places.append(place)
        if views:
            pixels = torch_images(views, clip.device)
            similar = head.similarities(clip.encode_images(pixels).cpu().numpy())
            kept += places
            targets += similar.argmax(axis=1).tolist()
    photographs.report()
    return answered(data, kept, targets)


def torch_images(views: Sequence[np.ndarray], device: str):
    """uint8 (H, W, 3) each → float32 (B, 3, H, W) in [0, 1]."""
    import torch

    return torch.from_numpy(np.stack(views)).to(device).permute(0, 3, 1, 2).float() / 255


def imagenet_names() -> list[str]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names = [info.index_to_description(index).split(",")[0] for index in range(1000)]
    return list(dict.fromkeys(names))  # two classes are cranes, two are maillots


def _described(calibration: Calibration, logits: np.ndarray, targets: np.ndarray, count: int) -> dict[str, object]:
    top1 = float((logits[count - 1].argmax(axis=1) == targets).mean())
    return {"layers": count, "temperature": round(calibration.of(count).temperature, 4), "top1": round(top1, 4)}


# ---------------------------------------------------------------- progressive


def measure_fixed(client: Client, data: Dataset, rate: str, prompt_set: str) -> dict[str, object]:
    """Mean bytes and top-1 of one rate over all images. An image that fails counts as wrong."""
    images = (data.read(item) for item in data.items)
    outcomes = client.classify_many(images, data.labels, top_k=1, prompt_set=prompt_set, rate=rate)
    return {"rate": rate, "layers": client.bundle.rates[rate], **_summary(data, outcomes)}


def measure_progressive(client: Client, data: Dataset, confidence: float, prompt_set: str) -> dict[str, object]:
    """The same with layers on demand; bytes include every MoreLayers message whole."""
    from edge.line.progressive import classify_progressive

    images = (data.read(item) for item in data.items)
    outcomes = classify_progressive(client, images, data.labels, top_k=1, prompt_set=prompt_set, confidence=confidence)
    return {"confidence": confidence, **_summary(data, outcomes)}


def _summary(data: Dataset, outcomes) -> dict[str, object]:
    predictions: list[tuple[str, ...]] = [()] * len(data.items)
    sent, layers = [], []
    for outcome in outcomes:
        if outcome.ok:
            predictions[outcome.index] = (outcome.result.best.label,)
            sent.append(outcome.result.packet_bytes)
            layers.append(outcome.result.layers)
    top1 = hits(predictions, [data.labels[item.target] for item in data.items], 1)
    return {
        "bytes_mean": round(float(np.mean(sent)), 2) if sent else None,
        "layers_mean": round(float(np.mean(layers)), 3) if layers else None,
        "top1": round(float(top1.mean()), 5),
        "failed": len(data.items) - len(sent),
    }


def against_fixed(fixed: Sequence[dict], points: Sequence[dict]) -> list[dict[str, object]]:
    """For each fixed rate but the lowest: the bytes that progressive answers need for the same top-1.

    The lowest rate is where progressive answers begin (confidence near 0), and so the first point. Between two points
    bytes are interpolated: asking each image for one or the other confidence at random gives that mean. bytes_ratio
    below 1: progressive sends less; None: no point measured is as accurate.
    """
    ladder: list[dict] = []  # cheapest first, each more accurate than all before
    for point in sorted([fixed[0], *points], key=lambda each: (each["bytes_mean"], -each["top1"])):
        if not ladder or point["top1"] > ladder[-1]["top1"]:
            ladder.append(point)
    out = []
    for rate in fixed[1:]:
        needed = None
        if rate["top1"] <= ladder[-1]["top1"]:
            tops, sizes = [each["top1"] for each in ladder], [each["bytes_mean"] for each in ladder]
            needed = round(float(np.interp(rate["top1"], tops, sizes)), 2)
        ratio = None if needed is None else round(needed / rate["bytes_mean"], 4)
        out.append(
            {
                "rate": rate["rate"],
                "top1": rate["top1"],
                "bytes_mean": rate["bytes_mean"],
                "progressive_bytes_mean": needed,
                "bytes_ratio": ratio,
            }
        )
    return out


def _progressive(args: argparse.Namespace) -> int:
    import contextlib

    from benchmarks.results.testbed import describe
    from benchmarks.rig.server_process import running_service
    from edge.line.client import Client
    from thinwire.bundle import load_bundle, resolve_bundle

    data = load_dataset(args.data, args.limit, args.seed)
    path = resolve_bundle(args.bundle)
    bundle = load_bundle(path)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        server = args.server or stack.enter_context(running_service(args.clip, path))
        client = stack.enter_context(Client(server, bundle))
        info = client.check()
        if not any(each.progressive for each in info.bundles if each.model_id == bundle.model_id):
            print(
                f"thinwire-bench: {server} has no calibration of {bundle.name} for {info.clip.name}: "
                f"run `thinwire-bench calibrate --bundle {args.bundle} --clip {args.clip} --data OTHER_IMAGES`",
                file=sys.stderr,
            )
            return 1
        fixed = []
        for rate in bundle.rates:
            fixed.append(measure_fixed(client, data, rate, args.prompt_set))
            print(f"{rate}: {fixed[-1]}", file=sys.stderr, flush=True)
        points = []
        for confidence in sorted({*CONFIDENCES, args.confidence}):
            points.append(measure_progressive(client, data, confidence, args.prompt_set))
            print(f"progressive: {points[-1]}", file=sys.stderr, flush=True)
    chosen = next(point for point in points if point["confidence"] == args.confidence)
    document = {
        "benchmark": "progressive",
        "bytes_mean": chosen["bytes_mean"],
        "top1": chosen["top1"],
        "confidence": args.confidence,
        "fixed": fixed,
        "points": points,
        "against_fixed": against_fixed(fixed, points),
        "command": shlex.join(["thinwire-bench", *sys.argv[1:]]),
        "testbed": describe(),
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": info.clip.name,
        "bundle": {"name": bundle.name, "model_id": bundle.model_id.hex()},
        "seed": args.seed,
        "wall_s": round(time.monotonic() - started, 1),
    }
    line = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if args.json:
        Path(args.json).write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 3 if any(row["failed"] for row in (*fixed, *points)) else 0
