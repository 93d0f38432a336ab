"""`thinwire-bench`: the benchmarks' command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import (
    compare,
    field,
    frame_search,
    progressive,
    ray_serve,
    service_load,
    timing_commands,
    watching,
)
from benchmarks.contestants import default_families, parse_families, parse_peers
from benchmarks.progress import ended_by_sigterm
from edge.defaults import DEFAULT_BUNDLE
from thinwire.errors import ThinwireError
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from synthesis.adapter import Adapter

FAMILIES_HELP = "shipped bundles, bundle folders, embedding, or all: shipped, runs/*/bundle, embedding"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinwire-bench", description="Accuracy, bytes and time over the real wire.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "eval",
        help="classify a labelled data set uncompressed and at each rate",
        description="Sends every image through the edge client to a server, as lossless PNG and as packets. Starts its "
        "own server unless --server names one. The last line on stdout is one JSON document.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.add_argument("--data", required=True, metavar="TAR|DIR", help="tar or folder with labels.csv, or class folders")
    run.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help="codec to measure")
    run.add_argument("--rates", metavar="A,B", help="rates to measure (default: all of the bundle)")
    run.add_argument("--clip", default="clip-lite", help="CLIP of the server that is started; see thinwire-cloud serve")
    run.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    run.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
    run.add_argument("--seed", type=int, default=0, help="seed of the sample and of the bootstrap")
    run.add_argument("--adapter", metavar="PATH", help="also with this adapter in the server's CLIP: its paired gain")
    run.add_argument("--server", metavar="HOST:PORT", help="measure against this server instead of starting one")
    run.add_argument("--threads", type=int, default=1, help="CPU threads of the edge's encoder")
    run.add_argument("--precision", default="auto", choices=["auto", "fp32", "int8"], help="of the edge's encoder")
    run.add_argument("--json", nargs="?", const="", metavar="PATH", help="also write the JSON document to PATH")
    curve = commands.add_parser(
        "rate-accuracy",
        help="codec families against JPEG, WebP, AVIF, JPEG XL, each at any size and quality",
        description="Measures every rate of the families through the edge client and a real server, and every size x "
        "quality of the peers with the same CLIP. Each operating point is kept in OUT.points as it is finished; run "
        "again, only missing points are measured. The last line on stdout is the JSON document that OUT gets too.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    curve.add_argument("--families", default="all", metavar="A,B", help=FAMILIES_HELP)
    curve.add_argument("--peers", default="jpeg,webp,avif,jxl", metavar="A,B", help='also jpeg2000; "" for none')
    curve.add_argument(
        "--data", required=True, metavar="TAR|DIR", help="tar or folder with labels.csv, or class folders"
    )
    curve.add_argument("--json", required=True, metavar="OUT", help="where the JSON document goes")
    curve.add_argument("--plot", metavar="OUT.png", help="also draw relative top-1 against bytes (.png, .svg, .pdf)")
    curve.add_argument("--adapter", metavar="PATH", help="its bundle also with this adapter in CLIP: its paired gain")
    curve.add_argument("--clip", default="clip-lite", help="CLIP of both server and peers; see thinwire-cloud serve")
    curve.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    curve.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
    curve.add_argument("--seed", type=int, default=0, help="seed of the sample and of the bootstrap")
    study = commands.add_parser(
        "study",
        help="all experiments of a preset, then the report; finished points are never measured again",
        description="Runs every experiment on the data sets in a folder. Each operating point is a file of its own in "
        "OUT, kept as it is finished; run again, only missing points are measured. Ends with one line of JSON that "
        "names the files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    study.add_argument("--preset", default="quick", choices=["quick", "full"], help="how much; see docs/benchmarks.md")
    study.add_argument("--data-dir", required=True, metavar="DIR", help="folder of labelled data sets, or one of them")
    study.add_argument("--out", required=True, metavar="OUT", help="folder of the points and the report")
    study.add_argument("--only", action="append", default=[], metavar="NAME", help="run this experiment (repeatable)")
    study.add_argument("--data", metavar="A,B", help="data sets of DIR to use (default: the preset's)")
    study.add_argument("--families", metavar="A,B", help=FAMILIES_HELP + " (default: all)")
    study.add_argument("--peers", default="all", metavar="A,B", help='jpeg, webp, avif, jxl, jpeg2000; "" for none')
    study.add_argument("--clip", nargs="+", default=["clip-lite"], metavar="CLIP", help="CLIPs that look")
    study.add_argument("--captions", type=Path, metavar="CSV|DIR|TAR", help="caption set of retrieval")
    study.add_argument(
        "--domain", action="append", default=[], type=Path, metavar="DIR", help="labelled set of domains (repeatable)"
    )
    study.add_argument("--blip", metavar="DIR|NAME", help="weights for BLIP image-text matching (default: left out)")
    study.add_argument("--limit", type=int, metavar="N", help="images of each set (default: the preset's)")
    study.add_argument("--seed", type=int, default=0, help="seed of samples and bootstraps")
    study.add_argument(
        "--skip-existing", action=argparse.BooleanOptionalAction, default=True, help="keep points that OUT holds"
    )
    report = commands.add_parser("report", help="write report.html, report.md, results.csv and figures anew from OUT")
    report.add_argument("out", metavar="OUT", help="folder that a study wrote")
    timing_commands.add_commands(commands)
    for module in (compare, progressive, service_load, field, watching, frame_search, ray_serve):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `thinwire-bench`; returns the exit code: 0 measured, 1 failed, 2 wrong use, 3 some images failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(words)
    try:
        if hasattr(args, "run"):
            return args.run(args)
        document = RUN[args.command](args, words)
    except ThinwireError as error:
        print(f"thinwire-bench: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"thinwire-bench: {error}: install the benchmarks with `pip install 'thinwire[bench,cloud]'`",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("thinwire-bench: interrupted", file=sys.stderr)
        return 130
    line = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    if getattr(args, "json", None):
        try:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(line + "\n", encoding="utf-8")
        except OSError as error:
            print(f"thinwire-bench: {error}", file=sys.stderr)
            print(line, flush=True)  # the measurement took long; a bad path must not lose it
            return 1
    if getattr(args, "plot", None):
        from benchmarks.plot import plot

        data = document["data"]["name"]
        try:
            plot(document["points"], Path(args.plot), f"{data}, {document['n']} images, CLIP {document['clip']}")
        except (OSError, ValueError) as error:  # a folder that cannot be written, a format that matplotlib lacks
            print(f"thinwire-bench: {args.plot}: {error}", file=sys.stderr)
            print(line, flush=True)
            return 1
    print(line, flush=True)
    return 3 if any(row["failed"] for row in document.get("points", document.get("results", ()))) else 0


def _eval(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from tqdm import tqdm

    from benchmarks import adapter_gain
    from benchmarks.data import load_dataset
    from benchmarks.evaluate import collect, summaries, targets_of
    from benchmarks.service import running_service
    from benchmarks.testbed import describe
    from edge.client import Client
    from thinwire.bundle import load_bundle, resolve_bundle

    data = load_dataset(args.data, args.limit, args.seed)
    path = resolve_bundle(args.bundle)
    bundle = load_bundle(path)
    rates = [rate.strip() for rate in args.rates.split(",") if rate.strip()] if args.rates else list(bundle.rates)
    for rate in rates:
        bundle.n_layers(rate)  # before a server is started for nothing
    adapter = adapter_gain.load_for(args.adapter, [bundle]) if args.adapter else None
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        server = args.server or stack.enter_context(running_service(args.clip, path))
        client = stack.enter_context(
            Client(server, bundle, rate=rates[0], threads=args.threads, precision=args.precision)
        )
        clip = client.uplink.info().clip.name
        bar = stack.enter_context(tqdm(total=len(data.items), desc=data.name, unit="image", file=sys.stderr))
        other = None
        if adapter:
            address = stack.enter_context(running_service(args.clip, path, adapter=adapter.path))
            second = stack.enter_context(
                Client(address, bundle, rate=rates[0], threads=args.threads, precision=args.precision)
            )
            own = [rate for rate in rates if bundle.n_layers(rate) in adapter.layers]
            other = (bundle.name + adapter_gain.SUFFIX, second, own)
        records = collect(client, data, rates, args.prompt_set, lambda: bar.update(), other)
        results = summaries(records, client, data, args.seed)
    _print_table(
        results, f"{data.name}: {len(data.items)} of {data.total} images, {clip}, prompt set {args.prompt_set}"
    )
    gains = None
    if adapter:
        gains = adapter_gain.gains_of_records(records[1:], bundle.name, targets_of(data), args.seed)
        _say_gains(gains)
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
            "encoder": client.encoder.path.name,
        },
        "wall_s": round(time.monotonic() - started, 1),
        **({} if adapter is None else {"adapter": {**_described(adapter), **gains}}),
        "results": results,
    }


def _described(adapter: Adapter) -> dict[str, object]:
    return {"name": adapter.name, "clip": adapter.clip, "sha256": adapter.digest, "for": list(adapter.rates)}


def _say_gains(gains: Mapping[str, Any]) -> None:
    from benchmarks.adapter_gain import lines

    print("\n".join(lines(gains)), file=sys.stderr)


def _rate_accuracy(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks import adapter_gain
    from benchmarks.data import load_dataset
    from benchmarks.grid import codec_names
    from benchmarks.judge import Judge
    from benchmarks.points import PointStore
    from benchmarks.progress import progress_bar
    from benchmarks.rate_accuracy import NAME, RateAccuracy
    from benchmarks.rows import group_points, rows_of
    from benchmarks.summary import summarise_run
    from benchmarks.tables import print_points
    from benchmarks.testbed import describe

    families, peers = parse_families(args.families, args.clip), parse_peers(args.peers)
    data = load_dataset(args.data, args.limit, args.seed)
    started = time.monotonic()
    adapter = adapter_gain.load_for(args.adapter, families) if args.adapter else None
    judge = Judge(args.clip)
    context = {"command": shlex.join(["thinwire-bench", *words]), "testbed": describe()}
    store = PointStore(Path(args.json + ".points"), NAME, context)
    prompts = {args.prompt_set: PROMPT_SETS[args.prompt_set]}
    with ended_by_sigterm(), progress_bar(data.name) as progress:
        run = RateAccuracy(data, judge, args.clip, prompts, args.seed, store, adapter=adapter, progress=progress)
        (group,) = group_points(run.run(families, peers))
    points = rows_of(group)
    told = {}
    if adapter:
        names = [n for n, each in zip(codec_names(families), families) if each.model_id == adapter.model_id]
        gains = {name: adapter_gain.gains_of_points(group.points, name, args.prompt_set, args.seed) for name in names}
        told = {"adapter": {**_described(adapter), "codecs": gains}}
    document = {
        "benchmark": "rate-accuracy",
        **context,
        "seed": args.seed,
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": judge.clip.id,
        "device": judge.clip.device,
        "prompt_set": args.prompt_set,
        "view": list(judge.view_size),
        "wall_s": round(time.monotonic() - started, 1),
        "points_measured": run.measured,
        **told,
        "summary": summarise_run(points),
        "points": points,
    }
    print_points(document)
    for gain in told.get("adapter", {}).get("codecs", {}).values():
        _say_gains(gain)
    return document


def _study(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks.study import PRESETS, Study, run_study
    from benchmarks.testbed import describe

    study = Study(
        PRESETS[args.preset],
        Path(args.data_dir),
        Path(args.out),
        default_families(args.clip) if args.families is None else parse_families(args.families, args.clip[0]),
        parse_peers(args.peers),
        args.clip,
        {"command": shlex.join(["thinwire-bench", *words]), "testbed": describe()},
        args.seed,
        args.limit,
        [name.strip() for name in (args.data or "").split(",") if name.strip()],
        args.skip_existing,
        args.captions,
        args.domain,
        args.blip,
    )
    return run_study(study, args.only)


def _report(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks.study_report import write_study_report

    files = write_study_report(Path(args.out))
    return {"benchmark": "report", "out": args.out, "files": {name: str(path) for name, path in files.items()}}


RUN = {"eval": _eval, "rate-accuracy": _rate_accuracy, "study": _study, "report": _report}
RUN |= dict.fromkeys(timing_commands.COMMANDS, timing_commands.run)


def _print_table(results: list[dict[str, object]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.tables import LOG_WIDTH, cell

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


if __name__ == "__main__":
    sys.exit(main())
