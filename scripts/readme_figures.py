"""Writes the tables of README.md and docs/*.md from benchmarks/results; `--check` only says whether they agree.

Each file there is the unedited JSON document of one command: `thinwire-bench eval --json`, `make demo`,
`thinwire-export clip-lite-eval`, `make edge-size`, and those that the tables of device and service name.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUNDLES = ("layered",)
JUDGED = ("caltech101", "imagenette")
TITLES = {"av1": "bare AV1", "webp": "bare WebP", "jpeg": "bare JPEG", "jxl": "bare JPEG XL"}
PACKS = ("caltech101", "imagenette", "cifar10", "scenes")


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(header), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def demo() -> str:
    run = read("demo")
    first, rival = run["groups"][0], run["bare_av1"]
    reached = "that names as many of them right" if rival["right"] >= first["right"] else "that names most right"
    return (
        f"{run['images']} photographs: {run['right_uncompressed']} named right uncompressed, {run['right']} through "
        f"the wire at {run['mean_packet_bytes']:.0f} bytes each (`{run['bundle']}`, {run['clip']}, adapter "
        f"`{run['adapter']}`). Of "
        f"{first['images']} well-known things among {first['labels']} labels {first['right_uncompressed']} "
        f"uncompressed, {first['right']} at {first['mean_packet_bytes']:.0f} bytes; the smallest bare AV1 still "
        f"{reached} ({rival['right']}) takes {rival['mean_bytes']:.0f}."
    )


def judged(codecs: Iterable[str] = ("still", "layered", "av1")) -> str:
    """Each data set's codecs before the serving CLIP and before strangers, and what the best bare peer takes.

    codecs: whose rows are shown; none: all. The best bare peer is the best of all that were run.
    """
    tables = []
    for pack in JUDGED:
        run = read(f"judged-{pack}")
        names = [name for name in run["judges"] if any(name in row["judges"] for row in run["points"])]
        equal = {(each["codec"], each["judge"]): each for each in run["transfer"]}
        rows = []
        for row in run["points"]:
            if row["kind"] == "reference" or (row["kind"] == "peer" and not row["hull"]):
                continue
            if codecs and row["codec"] not in codecs:
                continue
            low, high = row["top1_relative_ci95"]
            told = [row["judges"].get(name) for name in names]
            foreign = [each["agreement"] for each in told if each and each["role"] == "foreign"]
            rows.append(
                [
                    f"{TITLES.get(row['codec'], row['codec'])} {row['rate']}",
                    f"{row['bytes_mean']:,.0f}",
                    f"{row['top1_relative']:.2f} ({low:.2f} to {high:.2f})",
                    peer_bytes(equal.get((row["codec"], "serving CLIP")), row["bytes_mean"]),
                    f"{sum(foreign) / len(foreign):.2f}" if foreign else "–",
                    peer_bytes(equal.get((row["codec"], "foreign judges, mean")), row["bytes_mean"]),
                    *("–" if each is None else f"{each['agreement']:.2f}" for each in told),
                ]
            )
        header = [
            f"{pack}, {run['n']} images",
            "bytes",
            f"relative top-1 of {run['clip'].partition('#')[0]}",
            "best bare peer at that top-1, bytes",
            "foreign judges agree, mean",
            "best bare peer at that agreement, bytes",
            *(name.rpartition("/")[2] for name in names),
        ]
        saved = [
            f"{each['codec']} takes {against_peer(each)}"
            for each in run["transfer"]
            if each["judge"] in ("serving CLIP", "foreign judges, mean") and (not codecs or each["codec"] in codecs)
        ]
        tables.append(
            f"{table(header, rows)}\n\nBytes against the best bare peer at equal answers: {'; '.join(saved)}."
        )
    return "\n\n".join(tables)


def runtimes() -> str:
    """A cloud in ONNX Runtime alone beside one that imports torch: one run of both, and their vectors on four packs."""
    run, parity = read("runtimes"), read("runtimes-parity")["parity"].values()
    onnx, torch = (run["servers"][name] for name in ("onnx", "torch"))
    images = sum(each["images"] for each in parity)
    same = sum(round(each["onnx"]["same_top1"] * each["images"]) for each in parity)
    worst = min(each["onnx"]["cosine_min"] for each in parity)
    rows = [
        ["start to serving, s", f"{onnx['start_s']:.1f}", f"{torch['start_s']:.1f}"],
        ["served images/s, 16 in flight", f"{onnx['images_per_s']:.1f}", f"{torch['images_per_s']:.1f}"],
        ["resident memory after the load, MB", f"{onnx['rss_mb']:,.0f}", f"{torch['rss_mb']:,.0f}"],
        [f"worst cosine to torch's vectors, {images:,} images of four sets", f"{worst:.7f}", ""],
        ["same best label on those", f"{same:,} of {images:,}", ""],
    ]
    header = [f"{run['clip']}, `{run['bundle']}`, CPU", "`--runtime onnx`", "`--runtime torch`"]
    command, load = run["command"].partition(" --json")[0], run["load_average"][0]
    parity_command = "thinwire-bench runtimes --starts 0 --rounds 0 --data EVAL-PACKS --limit 300"
    return f"{table(header, rows)}\n\n`{command}` (load average {load:.1f}) and `{parity_command}`."


def peer_bytes(found: dict | None, size: float) -> str:
    """What the best peer takes for the same answers as a family's rate of `size` bytes."""
    rate = next((each for each in (found or {}).get("rates", ()) if abs(each["bytes_mean"] - size) < 1), None)
    if rate is None:
        return ""
    if rate["best_peer_bytes"] is None:
        return "not reached"
    return ("≤ " if rate["best_peer_at_most"] else "") + f"{rate['best_peer_bytes']:,.0f}"


def against_peer(each: dict) -> str:
    """One family before one judge: how many bytes fewer or more than the best bare peer at equal answers."""
    if each["saving"] is None:
        return f"not comparable before the {each['judge']} ({each['reason']})"
    word = "fewer" if each["saving"] >= 0 else "more"
    low, high = each["ci95"] or (None, None)
    interval = "" if low is None else f", 95 %: {-100 * high:+.0f} to {-100 * low:+.0f} %"
    return f"{abs(100 * each['saving']):.0f} % {word} before the {each['judge']}{interval}"


def codec() -> str:
    """Each bundle's uncompressed top-1 and images, then a row for each rate; a column for each pack."""
    rows = []
    for bundle in BUNDLES:
        documents = [read(f"eval-{pack}-{bundle}") for pack in PACKS]
        results = [{row["rate"]: row for row in document["results"]} for document in documents]
        plain = [f"{100 * found[None]['top1']:.1f} % of {found[None]['n']} images" for found in results]
        rows.append([bundle, "uncompressed", *plain])
        for rate in filter(None, results[0]):
            cells = []
            for found in results:
                row = found[rate]
                low, high = row["top1_relative_ci95"]
                cells.append(f"{row['top1_relative']:.2f} ({low:.2f} to {high:.2f}) at {row['bytes_mean']:.0f} B")
            rows.append([bundle, rate, *cells])
    return table(["bundle", "rate", *PACKS], rows)


def clip_lite() -> str:
    rows = {"clip-lite": read("clip-lite")}
    if (RESULTS / "clip-lite-teacher-text.json").exists():
        rows["the same with MiniLM as text tower"] = read("clip-lite-teacher-text")

    def cells(source: dict) -> list[str]:
        shot = source["zero_shot"]
        return [" / ".join(f"{shot[pack][count]['top1']:.1f}" for count in ("1", "7", "80")) for pack in PACKS]

    zero_shot = table(
        ["top-1 with 1 / 7 / 80 templates", *PACKS], [[name, *cells(source)] for name, source in rows.items()]
    )
    columns = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r1", "image_to_text_r10")
    retrieval = table(
        ["Flickr8k, 500 images", "text→image R@1", "R@10", "image→text R@1", "R@10"],
        [
            [name, *(f"{source['retrieval_flickr8k'][column]:.1f}" for column in columns)]
            for name, source in rows.items()
        ],
    )
    return zero_shot + "\n\n" + retrieval


def adapted() -> str:
    """`still` before clip-lite, plain and with the adapter that ships: a row for each rate, a column for each pack."""
    runs = [read(f"adapter-still-{pack}") for pack in PACKS]
    rates = [rate["rate"] for rate in runs[0]["adapter"]["rates"]]
    rows = [[rate, *(gained(run, number) for run in runs)] for number, rate in enumerate(rates)]
    saved = []
    for pack, run in zip(PACKS, runs):
        found = run["adapter"]["rate_saving"]
        if found["saving"] is None:
            saved.append(f"{pack} not comparable ({found['reason']})")
        else:
            low, high = found["ci95"]
            saved.append(f"{pack} {100 * found['saving']:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
    header = ["rate", *(f"{pack}, {run['n']} images" for pack, run in zip(PACKS, runs))]
    bare = [
        f"{each['codec']} on {pack} takes {against_peer(each)}"
        for pack in JUDGED
        for each in read(f"adapted-{pack}")["transfer"]
    ]
    return (
        f"{table(header, rows)}\n\nBytes saved at equal top-1, over all accuracies that both reach: "
        f"{', '.join(saved)}.\n\nBytes against the best bare AV1 still at equal top-1: {'; '.join(bare)}."
    )


def gained(run: dict, number: int) -> str:
    """One rate of a paired measurement: bytes, relative top-1 before → after, and the gain in points."""
    rate = run.get("adapter", run.get("decoder"))["rates"][number]
    whole = run["results"][0]["top1"]
    low, high = rate["gain_ci95"]
    gain = f"{100 * rate['gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{rate['bytes_mean']:,.0f} B: {rate['top1'] / whole:.2f} → {rate['top1_adapted'] / whole:.2f}, {gain}"


def your_clip() -> str:
    """What minutes of training buy a CLIP that no codec here has seen: a row for each CLIP, way, minutes and rate."""
    rows, closed = [], []
    for path in sorted(RESULTS.glob("yours-*-caltech101.json"), key=_order):
        _, way, clip, minutes, _ = path.stem.split("-", 4)
        paths = [path, path.with_name(path.name.replace("caltech101", "imagenette"))]
        runs = [json.loads(each.read_text()) if each.exists() else None for each in paths]
        title = {"pixels": "`layered`, `tune`", "adapter": "`still`, `adapt`"}[way]
        for number, rate in enumerate(runs[0].get("adapter", runs[0].get("decoder"))["rates"]):
            cells = ["not measured" if run is None else gained(run, number) for run in runs]
            rows.append([YOURS[clip], title, minutes, rate["rate"], *cells])
            if way == "pixels" and clip != "own" and int(minutes) > 10:
                shares = (f"{_closed(run, number, pack):.0f} %" for run, pack in zip(runs, JUDGED))
                closed.append(f"{YOURS[clip]} at {rate['rate']} {' and '.join(shares)}")
    header = ["CLIP", "what is trained", "minutes", "rate", *JUDGED]
    gap = "Share of the gap to `layered`'s own CLIP, clip-lite, that 12 minutes of `tune` close, on"
    return f"{table(header, rows)}\n\n{gap} {' and '.join(JUDGED)}: {'; '.join(closed)}."


def _closed(run: dict, number: int, pack: str) -> float:
    """Percent of the gap between a stranger's relative top-1 and that of the codec's own CLIP, before any tuning."""
    own = read(f"yours-pixels-own-3-{pack}")
    before, after = (
        run["decoder"]["rates"][number][key] / run["results"][0]["top1"] for key in ("top1", "top1_adapted")
    )
    return 100 * (after - before) / (own["decoder"]["rates"][number]["top1"] / own["results"][0]["top1"] - before)


YOURS = {"lite2": "EfficientNet-Lite2's", "deit": "DeiT-tiny's", "own": "clip-lite"}


def _order(path: Path) -> tuple:
    _, way, clip, minutes, _ = path.stem.split("-", 4)
    return list(YOURS).index(clip), way == "adapter", int(minutes)


def edge_size() -> str:
    run = read("edge-size")
    return (
        f"{run['edge_packages_no_pyc_mb']:.0f} MB of packages ({run['edge_packages_mb']:.0f} MB once Python has "
        f"compiled them), and {run['thinwire_mb']:.0f} MB for thinwire itself with its shipped models."
    )


def verdict(good: bool, target: str) -> str:
    return target if good else f"{target}: **missed**"


def device() -> str:
    foot, field, auto = read("edge-footprint"), read("field"), read("rate-auto")
    met, ratio = auto["deadline_met_share"], auto["accuracy_ratio"]
    return table(
        ["on a device", "measured", "target", "command"],
        [
            [
                "resident memory",
                f"{foot['rss_mb']:.0f} MB",
                verdict(foot["rss_mb"] <= 150, "150 MB"),
                "`thinwire-bench edge-footprint`",
            ],
            [
                "start to first packet",
                f"{foot['cold_start_s']:.2f} s",
                verdict(foot["cold_start_s"] <= 1, "1 s"),
                "the same",
            ],
            [
                "CPU a frame, JPEG decoding included",
                f"{foot['cpu_ms_per_frame']:.1f} ms",
                verdict(foot["cpu_ms_per_frame"] <= 15, "15 ms"),
                "the same",
            ],
            [
                f"{field['frames']:,} frames, {field['link_cuts']} cuts of the link, server killed "
                f"{field['server_kills']} times, client {field['client_kills']} times",
                f"{field['lost']} lost, {field['duplicated']} twice",
                verdict(field["lost"] == field["duplicated"] == 0, "0, 0"),
                "`thinwire-bench field`",
            ],
            [
                "`--rate auto`, 20 kbit/s to 2 Mbit/s: answered within 2 s",
                f"{100 * met:.1f} %",
                verdict(met >= 0.95, "95 %"),
                "`thinwire-bench rate-auto`",
            ],
            [
                "its accuracy over the best fixed rate that keeps the deadline",
                "no fixed rate keeps it" if ratio is None else f"{ratio:.2f}",
                verdict(ratio is None or ratio >= 0.9, "0.9"),
                "the same",
            ],
        ],
    )


def service() -> str:
    run, load, watching, search = map(read, ("service", "throughput", "watching", "search"))
    (point,) = load["points"]
    frames = f"text query over {search['frames']:,} kept frames, p50 ms"
    most, least = "at most", "at least"
    rows = [
        ("start to serving, s", run["start_s"], ".1f", most, 10, "service"),
        ("lone request over decoding and CLIP, ms", run["lone_overhead_ms_p50"], ".1f", most, 2, "service"),
        ("p99 at 5x capacity over p99 at 0.8", run["overload_p99_ratio"], ".2f", most, 2, "service"),
        ("answers at 5x capacity over capacity", run["overload_goodput_ratio"], ".2f", least, 0.9, "service"),
        ("refusal, p99 ms", run["reject_ms_p99"], ".0f", most, 50, "service"),
        (
            f"memory grown in {run['soak_s'] / 60:.0f} minutes at 0.8",
            run["soak_rss_growth"],
            ".2%",
            most,
            0.02,
            "service --soak 1800",
        ),
        (
            "served images/s over the same work in-process",
            point["served_over_bare_ratio"],
            ".2f",
            least,
            0.9,
            "throughput",
        ),
        ("over its networks alone", point["served_over_networks_ratio"], ".2f", None, None, "throughput"),
        ("metrics, page and traces cost of the images/s", watching["watch_cost"], ".1%", most, 0.02, "watching"),
        ("the frame store costs of them", watching["store_cost"], ".1%", most, 0.03, "watching"),
        (frames, search["text_ms_p50"], ".0f", most, 20, "search"),
    ]
    return table(
        ["service on 2 cores", "measured", "target", "command"],
        [
            [what, f"{value:{spec}}", target(value, side, bound, spec), f"`thinwire-bench {command}`"]
            for what, value, spec, side, bound, command in rows
        ],
    )


def target(value: float, side: str | None, bound: float | None, spec: str) -> str:
    if side is None:
        return "none"
    met = value <= bound if side == "at most" else value >= bound
    return verdict(met, f"{side} {f'{bound:.0%}' if '%' in spec else bound}")


FIGURES = {
    "demo": demo,
    "runtimes": runtimes,
    "judged": judged,
    "judged-all": lambda: judged(()),
    "codec": codec,
    "clip-lite": clip_lite,
    "adapted": adapted,
    "your-clip": your_clip,
    "edge-size": edge_size,
    "device": device,
    "service": service,
}


BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str) -> str:
    """A page with the body of every block written again."""
    return BLOCK.sub(lambda block: f"{block[1]}{FIGURES[block[2]]()}\n{block[3]}", text)


def main() -> int:
    texts = {path: path.read_text() for path in PAGES}
    named = {block[2] for text in texts.values() for block in BLOCK.finditer(text)}
    if named != set(FIGURES):
        raise SystemExit(f"blocks and figures differ: {', '.join(sorted(named ^ set(FIGURES)))}")
    differ = [path for path, text in texts.items() if render(text) != text]
    if "--check" in sys.argv:
        for path in differ:
            print(f"{path.relative_to(ROOT)} differs from benchmarks/results: run `make figures`", file=sys.stderr)
        return int(bool(differ))
    for path in differ:
        path.write_text(render(texts[path]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
