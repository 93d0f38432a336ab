"""`thinwire-bench eval`: a labelled data set uncompressed and at each rate, through the real edge and a real server."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from typing import TYPE_CHECKING

from edge.defaults import DEFAULT_BUNDLE
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers `eval`, which sets `document`."""
    parser = commands.add_parser(
        "eval",
        help="classify a labelled data set uncompressed and at each rate",
        description="Sends every image through the edge client to a server, as lossless PNG and as packets. Starts its "
        "own server unless --server names one. The last line on stdout is one JSON document.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, metavar="TAR|DIR", help="tar or folder with labels.csv, or class folders"
    )
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help="codec to measure")
    parser.add_argument("--rates", metavar="A,B", help="rates to measure (default: all of the bundle)")
    parser.add_argument(
        "--clip", default="clip-lite", help="CLIP of the server that is started; see thinwire-cloud serve"
    )
    parser.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and of the bootstrap")
    parser.add_argument(
        "--adapter", metavar="PATH", help="measure also with this adapter in the server's CLIP: the paired gain"
    )
    parser.add_argument(
        "--decoder",
        metavar="PATH",
        help="also with this tuned decoder in the server (thinwire-export tune): its paired gain; with --adapter all "
        "servers have it, and the gain is the adapter's",
    )
    parser.add_argument("--server", metavar="HOST:PORT", help="measure against this server instead of starting one")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the edge's encoder")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "int8"], help="of the edge's encoder")
    parser.add_argument("--json", nargs="?", const="", metavar="PATH", help="also write the JSON document to PATH")
    parser.set_defaults(document=_eval)


def _eval(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from tqdm import tqdm

    from benchmarks.accuracy import adapter_gain
    from benchmarks.accuracy.evaluate import collect, summaries, targets_of
    from benchmarks.data.sets import load_dataset
    from benchmarks.results.testbed import describe
    from benchmarks.rig.server_process import running_service
    from edge.line.client import Client
    from thinwire.bundle import load_bundle, resolve_bundle

    data = load_dataset(args.data, args.limit, args.seed)
    path = resolve_bundle(args.bundle)
    bundle = load_bundle(path)
    rates = [rate.strip() for rate in args.rates.split(",") if rate.strip()] if args.rates else list(bundle.rates)
    for rate in rates:
        bundle.n_layers(rate)  # before a server is started for nothing
    decoder = tuned_for(args.decoder, bundle) if args.decoder else None
    adapter = adapter_gain.load_for(args.adapter, [bundle], [decoder] if decoder else []) if args.adapter else None
    tuned = {} if decoder is None else {"decoder": decoder.path}
    first, second = (tuned, {**tuned, "adapter": adapter.path}) if adapter else ({}, tuned)
    suffix = adapter_gain.SUFFIX if adapter else adapter_gain.TUNED
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        server = args.server or stack.enter_context(running_service(args.clip, path, **first))
        client = stack.enter_context(
            Client(server, bundle, rate=rates[0], threads=args.threads, precision=args.precision)
        )
        clip = client.uplink.info().clip.name
        bar = stack.enter_context(tqdm(total=len(data.items), desc=data.name, unit="image", file=sys.stderr))
        other = None
        if second:
            address = stack.enter_context(running_service(args.clip, path, **second))
            beside = stack.enter_context(
                Client(address, bundle, rate=rates[0], threads=args.threads, precision=args.precision)
            )
            own = [rate for rate in rates if adapter is None or bundle.n_layers(rate) in adapter.layers]
            other = (bundle.name + suffix, beside, own)
        records = collect(client, data, rates, args.prompt_set, lambda: bar.update(), other)
        results = summaries(records, client, data, args.seed)
    _print_table(
        results, f"{data.name}: {len(data.items)} of {data.total} images, {clip}, prompt set {args.prompt_set}"
    )
    gains = {}
    if second:
        gains = adapter_gain.gains_of_records(records[1:], bundle.name, targets_of(data), args.seed, suffix)
        adapter_gain.say_gains(gains, "adapter" if adapter else "tuned decoder")
    height, width = bundle.input_size
    return {
        "benchmark": "eval",
        "command": shlex.join(["thinwire-bench", *words]),
        "testbed": describe(),
        "seed": args.seed,
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": clip,
        "prompt_set": args.prompt_set,
        "bundle": {
            "name": bundle.name,
            "model_id": bundle.model_id.hex(),
            "view": [height, width],
            "encoder": client.encoder.runs,
        },
        "wall_s": round(time.monotonic() - started, 1),
        **({} if decoder is None else {"decoder": {**described(decoder), **({} if adapter else gains)}}),
        **({} if adapter is None else {"adapter": {**adapter_gain.described(adapter), **gains}}),
        "results": results,
    }


def tuned_for(path: str, bundle: Bundle) -> DecoderVariant:
    """The decoder variant in `path`, for `bundle`. Raises `DecoderError`."""
    from synthesis.variant import load_variant

    variant = load_variant(path)
    variant.check_bundle(bundle)
    return variant


def described(variant: DecoderVariant) -> dict[str, object]:
    training = variant.about.get("training", {})
    return {
        "name": variant.name,
        "clip": variant.clip,
        "into": variant.into,
        "sha256": variant.digest,
        "minutes": training.get("settings", {}).get("minutes"),
        "steps": training.get("steps"),
    }


def _print_table(results: list[dict[str, object]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.results.tables import LOG_WIDTH, cell

    table = Table(title=title)
    for name in ("codec", "rate", "bytes", "bits/pixel", "top-1", "top-5", "relative (95%)", "class recall"):
        table.add_column(name, justify="left" if name in ("codec", "rate") else "right")
    table.add_column("encode ms", justify="right")
    table.add_column("round trip ms", justify="right")
    table.add_column("failed", justify="right")
    for row in results:
        interval = row["top1_relative_ci95"]
        relative = "-" if interval is None else f"{row['top1_relative']:.3f} ({interval[0]:.3f}-{interval[1]:.3f})"
        table.add_row(
            row["codec"],
            row["rate"] or "-",
            cell(row["bytes_mean"], ".1f"),
            cell(row["bits_per_pixel"], ".4f"),
            cell(row["top1"], ".4f"),
            cell(row["top5"], ".4f"),
            relative,
            cell(row["mean_per_class_recall"], ".4f"),
            cell(row["encode_ms_p50"], ".1f"),
            cell(row["round_trip_ms_p50"], ".1f"),
            str(row["failed"]),
        )
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(table)
