"""`thinwire-bench rate-accuracy`: codec families against image codecs at any size and quality."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from benchmarks.codecs.selection import FAMILIES_HELP, PEERS_HELP, parse_families, parse_peers
from benchmarks.judges.panel import JUDGES_HELP
from benchmarks.results.progress import ended_by_sigterm
from thinwire.prompts import PROMPT_SETS


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers `rate-accuracy`, which sets `document`."""
    parser = commands.add_parser(
        "rate-accuracy",
        help="codec families against bare AV1, WebP, JPEG and JPEG XL, each at any size and quality",
        description="Measures every rate of the families through the edge client and a real server, and the rungs "
        "of the peers with the same CLIP. Each operating point is kept in OUT.points as it is finished; run "
        "again, only missing points are measured. The last line on stdout is the JSON document that OUT gets too.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--families", default="all", metavar="A,B", help=FAMILIES_HELP)
    parser.add_argument("--peers", default="av1,webp,jpeg,jxl", metavar="A,B", help=PEERS_HELP)
    parser.add_argument(
        "--grid",
        default="fixed",
        choices=["fixed", "full"],
        help="rungs of bare peers chosen on training photographs, or every size x quality",
    )
    parser.add_argument(
        "--data", required=True, metavar="TAR|DIR", help="tar or folder with labels.csv, or class folders"
    )
    parser.add_argument(
        "--json", default="reports/rate-accuracy.json", metavar="OUT", help="where the JSON document goes"
    )
    parser.add_argument("--plot", metavar="OUT.png", help="also draw relative top-1 against bytes (.png, .svg, .pdf)")
    parser.add_argument(
        "--adapter", metavar="PATH", help="measure its bundle also with this adapter in CLIP: the paired gain"
    )
    parser.add_argument("--clip", default="clip-lite", help="CLIP of both server and peers; see thinwire-cloud serve")
    parser.add_argument("--judge", action="append", default=[], metavar="NAME", help=JUDGES_HELP)
    parser.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and of the bootstrap")
    parser.set_defaults(document=_rate_accuracy)


def _rate_accuracy(args: argparse.Namespace, words: list[str]) -> dict[str, object]:
    from benchmarks.accuracy import adapter_gain
    from benchmarks.accuracy.rate_accuracy import NAME, RateAccuracy
    from benchmarks.codecs.grid import FIXED_RUNGS, FULL_GRID, codec_names
    from benchmarks.data.sets import load_dataset
    from benchmarks.judges.judge import Judge
    from benchmarks.judges.panel import Panel
    from benchmarks.results.progress import progress_bar
    from benchmarks.results.rows import group_points, rows_of
    from benchmarks.results.store import PointStore
    from benchmarks.results.summary import summarise_run
    from benchmarks.results.tables import print_points
    from benchmarks.results.testbed import describe
    from benchmarks.results.transfer import summary

    families, peers = parse_families(args.families, args.clip), parse_peers(args.peers)
    data = load_dataset(args.data, args.limit, args.seed)
    started = time.monotonic()
    adapter = adapter_gain.load_for(args.adapter, families) if args.adapter else None
    context = {"command": shlex.join(["thinwire-bench", *words]), "testbed": describe()}
    store = PointStore(Path(args.json + ".points"), NAME, context)
    judge, panel = Judge(args.clip), Panel.load(args.judge, data, args.prompt_set, store.folder / "judges")
    prompts = {args.prompt_set: PROMPT_SETS[args.prompt_set]}
    with ended_by_sigterm(), progress_bar(data.name) as progress:
        run = RateAccuracy(
            data,
            judge,
            args.clip,
            prompts,
            args.seed,
            store,
            FIXED_RUNGS if args.grid == "fixed" else FULL_GRID,
            adapter=adapter,
            panel=panel,
            progress=progress,
        )
        (group,) = group_points(run.run(families, peers))
    points = rows_of(group)
    told = {}
    if adapter:
        names = [n for n, each in zip(codec_names(families), families) if each.picture_id == adapter.picture_id]
        gains = {name: adapter_gain.gains_of_points(group.points, name, args.prompt_set, args.seed) for name in names}
        told = {"adapter": {**adapter_gain.described(adapter), "codecs": gains}}
    document = {
        "benchmark": "rate-accuracy",
        **context,
        "seed": args.seed,
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": judge.clip.id,
        "device": judge.clip.device,
        "prompt_set": args.prompt_set,
        "judges": panel.key,
        "grid": args.grid,
        "view": list(judge.view_size),
        "wall_s": round(time.monotonic() - started, 1),
        "points_measured": run.measured,
        **told,
        "summary": summarise_run(points),
        "transfer": summary(group),
        "points": points,
    }
    print_points(document)
    for gain in told.get("adapter", {}).get("codecs", {}).values():
        adapter_gain.say_gains(gain)
    return document
