"""`thinwire-bench compare`: bundles against each other at equal bytes, with paired intervals.

Within a byte budget each codec sends its dearest rate whose mean bytes fit. The rate is chosen by bytes alone, never by
the answers, so that no codec is flattered by the images it is judged by; a codec without a rate that fits takes no
part. All codecs see the same images and the same CLIP, through the edge and a real server of their own
(see `benchmarks.accuracy.rate_accuracy`; finished points are kept in OUT.points).
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.codecs.grid import FAMILY
from benchmarks.results.rows import Group, correct, row_of
from benchmarks.stats.paired import holm, mcnemar_p, paired_difference
from thinwire.prompts import PROMPT_SETS

BUDGETS = (160, 300, 650, 1400, 2000)
"""Mean bytes of a packet."""


def add_commands(commands) -> None:
    """Registers `compare`, which sets `run`."""
    parser = commands.add_parser(
        "compare",
        help="compare bundles at equal bytes: paired differences with confidence intervals",
        description="At each byte budget every bundle sends its highest rate that fits; top-1 of each pair is compared "
        "image by image (paired bootstrap, McNemar, Holm over all pairs and budgets). The last line on stdout is the "
        "JSON document that OUT gets too.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bundles", nargs="+", required=True, metavar="BUNDLE", help="shipped names or folders")
    parser.add_argument("--data", required=True, metavar="TAR|DIR", help="labelled images; see thinwire-bench eval")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, metavar="BYTES", help="mean bytes")
    parser.add_argument("--json", default="reports/compare.json", metavar="OUT", help="where the JSON document goes")
    parser.add_argument("--clip", default="clip-lite", help="CLIP that answers; see thinwire-cloud serve")
    parser.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and of the bootstrap")
    parser.set_defaults(run=_run)


def compare(group: Group, budgets: Sequence[float], prompt_set: str, seed: int = 0) -> list[dict[str, object]]:
    """One entry for each budget: what each codec sends within it, and every pair of codecs, in the order of `group`.

    `difference` is top-1 of `codec` minus top-1 of `other`, as a share; `p_holm` is corrected over all pairs of all
    budgets; `claim` says whether the interval leaves out zero and p_holm is below 0.05.
    """
    families: dict[str, list[Mapping]] = {}
    for point in group.points:
        if point["kind"] == FAMILY:
            families.setdefault(point["codec"], []).append(point)
    entries, pairs = [], []
    for budget in budgets:
        sent, left_out = {}, {}
        for codec, points in families.items():
            rows = [(row_of(point, group.reference, prompt_set), point) for point in points]
            fits = [each for each in rows if each[0]["bytes_mean"] is not None and each[0]["bytes_mean"] <= budget]
            if fits:
                sent[codec] = max(fits, key=lambda each: each[0]["bytes_mean"])
            else:
                least = min((row["bytes_mean"] for row, _ in rows if row["bytes_mean"] is not None), default=None)
                said = "no image arrived" if least is None else f"its cheapest rate takes {least:.0f} bytes"
                left_out[codec] = said
        compared = []
        for first, second in itertools.combinations(sent, 2):
            mine, others = (correct(sent[codec][1], prompt_set) for codec in (first, second))
            difference, interval = paired_difference(mine, others, seed)
            compared.append(
                {
                    "codec": first,
                    "other": second,
                    "difference": round(difference, 5),
                    "difference_ci95": [round(end, 5) for end in interval],
                    "mcnemar_p": mcnemar_p(mine, others),
                }
            )
        pairs += compared
        keys = ("codec", "rate", "bytes_mean", "top1", "top5", "top1_relative", "psnr_db", "encode_ms_p50", "n")
        rows = [{key: row[key] for key in keys} for row, _ in sent.values()]
        entries.append({"budget_bytes": budget, "rates": rows, "left_out": left_out, "pairs": compared})
    for pair, adjusted in zip(pairs, holm([pair["mcnemar_p"] for pair in pairs])):
        low, high = pair["difference_ci95"]
        pair |= {"p_holm": adjusted, "claim": adjusted < 0.05 and not low <= 0 <= high}
    return entries


def print_comparison(document: Mapping) -> None:
    """The document as two tables on stderr."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.results.tables import LOG_WIDTH, cell

    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    for entry in document["budgets"]:
        table = Table(
            title=f"within {entry['budget_bytes']:g} bytes, {document['data']['name']}, {document['n']} images"
        )
        for name in ("codec", "rate", "bytes", "top-1", "relative", "against", "difference (95%)", "p (Holm)", "claim"):
            table.add_column(name, no_wrap=True)
        for row in entry["rates"]:
            shown = [row["rate"], cell(row["bytes_mean"], ".0f"), cell(row["top1"], ".3f")]
            table.add_row(row["codec"], *shown, cell(row["top1_relative"], ".3f"))
        for pair in entry["pairs"]:
            low, high = pair["difference_ci95"]
            interval = f"{pair['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            words = (pair["other"], interval, f"{pair['p_holm']:.2g}", "yes" if pair["claim"] else "no")
            table.add_row(pair["codec"], "", "", "", "", *words)
        console.print(table)
        for codec, reason in entry["left_out"].items():
            console.print(f"{codec}: takes no part ({reason})", highlight=False)


def _run(args: argparse.Namespace) -> int:
    from benchmarks.accuracy.rate_accuracy import NAME, RateAccuracy
    from benchmarks.codecs.selection import parse_families
    from benchmarks.data.sets import load_dataset
    from benchmarks.judges.judge import Judge
    from benchmarks.results.progress import ended_by_sigterm, progress_bar
    from benchmarks.results.rows import group_points
    from benchmarks.results.store import PointStore
    from benchmarks.results.testbed import describe
    from thinwire.files import write_whole

    bundles = parse_families(",".join(args.bundles), args.clip)
    data, judge = load_dataset(args.data, args.limit, args.seed), Judge(args.clip)
    context = {"command": shlex.join(["thinwire-bench", *sys.argv[1:]]), "testbed": describe()}
    store = PointStore(Path(args.json + ".points"), NAME, context)
    prompts = {args.prompt_set: PROMPT_SETS[args.prompt_set]}
    with ended_by_sigterm(), progress_bar(data.name) as progress:
        run = RateAccuracy(data, judge, args.clip, prompts, args.seed, store, progress=progress)
        (group,) = group_points(run.run(bundles, []))
    entries = compare(group, args.budgets, args.prompt_set, args.seed)
    document = {
        "benchmark": "compare",
        **context,
        "seed": args.seed,
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": judge.clip.id,
        "prompt_set": args.prompt_set,
        "training": {bundle.name: _training(bundle.card.about) for bundle in bundles},
        "budgets": entries,
    }
    print_comparison(document)
    line = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    print(line, flush=True)
    try:
        write_whole(Path(args.json), line + "\n")
    except OSError as error:
        print(f"thinwire-bench: {error}", file=sys.stderr)
        return 1
    return 0


def _training(about: Mapping) -> dict[str, object]:
    """What a card says of the training budget: a comparison of unequal ones should show it."""
    settings = about.get("training", {}).get("settings", {})
    return {key: settings.get(key) for key in ("minutes", "steps", "batch", "device", "threads", "warm_start")}
