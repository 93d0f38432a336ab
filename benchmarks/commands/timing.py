"""The commands `latency`, `throughput` and `energy` of `thinwire-bench`: arguments in, one JSON document out."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.codecs.selection import parse_families, parse_peers
from edge.defaults import DEFAULT_BUNDLE
from thinwire.errors import ThinwireError
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from benchmarks.data.sets import Dataset
    from benchmarks.results.progress import Progress
    from benchmarks.results.store import PointStore
    from benchmarks.timing.routes import Way


class WrongUse(ThinwireError):
    """Arguments that make no experiment; the message shows the right form."""

    reason: ClassVar[str] = "WRONG_USE"


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers the three commands."""
    latency = _command(
        commands,
        "latency",
        "image to answer over emulated links, stage by stage, against image codecs and all on the edge",
        "Sends images through the edge client, a shaping proxy and a real server of its own.",
    )
    latency.add_argument("--links", default="none,wi-fi,lte,3g,lte-m", metavar="A,B", help="or all, nb-iot, satellite")
    _add_ways(latency)
    latency.add_argument("--loops", default="closed,open", metavar="A,B", help="closed, open or both")
    latency.add_argument("--arrivals", type=float, default=1.0, metavar="R", help="images per second of the open loop")
    latency.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="deadline of a call, retries included"
    )

    throughput = _command(
        commands,
        "throughput",
        "images per second of the saturated service against the bare model in full batches",
        "Model, engine and server in this process, load from another; they take turns round after round.",
    )
    throughput.add_argument("--bundles", default=DEFAULT_BUNDLE, metavar="A,B", help="shipped bundles or folders")
    throughput.add_argument("--rates", default="mid", metavar="A,B", help="rates of the packets, or all")
    throughput.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    throughput.add_argument(
        "--server-threads", type=int, default=0, metavar="N", help="CPU threads of the networks; 0: all cores"
    )
    throughput.add_argument("--in-flight", type=int, metavar="N", help="unanswered requests (default: three batches)")
    throughput.add_argument(
        "--rounds", type=int, default=5, help="rounds; each measures bare networks, engine and server"
    )
    throughput.add_argument("--round-s", type=float, default=4.0, metavar="S", help="seconds of each measurement")

    energy = _command(
        commands,
        "energy",
        "joules (RAPL) or CPU-seconds per image, on the edge and in the cloud",
        "Edge: image file to request. Cloud: request to answer through the engine, one at a time, without transport.",
    )
    _add_ways(energy)
    energy.add_argument("--device", default="auto", help="device of the cloud side: auto, cpu, cuda or cuda:N")


def _command(
    commands: argparse._SubParsersAction, name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{description} Each operating point is kept in OUT.points as it is finished; run again, only "
        "missing points are measured. The last line on stdout is the JSON document that OUT gets too.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", required=True, metavar="TAR|DIR", help="tar or folder with labels.csv, or class folders"
    )
    parser.add_argument("--json", default=f"reports/{name}.json", metavar="OUT", help="where the JSON document goes")
    parser.add_argument("--n", type=int, default=50, metavar="N", help="images, drawn by --seed")
    parser.add_argument("--clip", default="clip-lite", help="CLIP of the server; see thinwire-cloud serve")
    parser.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the sample, the arrivals and the links' random delays"
    )
    parser.add_argument(
        "--skip-existing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse the points that OUT.points holds",
    )
    parser.set_defaults(document=run)
    return parser


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundles", default=DEFAULT_BUNDLE, metavar="A,B", help="shipped bundles or folders")
    parser.add_argument("--rates", default="all", metavar="A,B", help="rates of each bundle, or all")
    parser.add_argument("--peers", default="", metavar="A,B", help="av1, webp, jpeg: the view as a whole image file")
    parser.add_argument(
        "--peer-points", default="224:20,160:20,112:20", metavar="SIDE:VALUE", help="sizes and settings of the peers"
    )
    parser.add_argument(
        "--hull", metavar="JSON", help="use the peers' Pareto points of this rate-accuracy document instead of --peers"
    )
    parser.add_argument("--on-edge", metavar="PATH", help="embedding bundle that answers on the device alone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the edge's encoder")


def run(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Measures what is missing and returns the document. Raises `ThinwireError`."""
    from benchmarks.data.sets import load_dataset
    from benchmarks.results.progress import ended_by_sigterm, progress_bar
    from benchmarks.results.store import PointStore
    from benchmarks.results.testbed import describe
    from benchmarks.timing.run import clip_identity

    context = {"command": shlex.join(["thinwire-bench", *words]), "testbed": describe()}
    data = load_dataset(args.data, args.n, args.seed)
    store = PointStore(Path(args.json + ".points"), args.command, context, args.skip_existing)
    started, load_average = time.monotonic(), os.getloadavg()[0]
    measure = {"latency": _latency, "throughput": _throughput, "energy": _energy}[args.command]
    with ended_by_sigterm(), progress_bar(args.command) as progress:
        points, measured = measure(args, data, store, progress)
    return {
        "benchmark": args.command,
        **context,
        "load_average": round(load_average, 2),
        "seed": args.seed,
        "n": len(data.items),
        "data": {"name": data.name, "sha256": data.sha256, "images": data.total, "labels": len(data.labels)},
        "clip": clip_identity(args.clip),
        "prompt_set": args.prompt_set,
        "wall_s": round(time.monotonic() - started, 1),
        "points_measured": measured,
        "points": points,
    }


def _latency(args: argparse.Namespace, data: Dataset, store: PointStore, progress: Progress) -> tuple[list[dict], int]:
    from benchmarks.rig.links import find_links
    from benchmarks.timing.latency_run import LatencyRun, Loop

    loops = []
    for name in _names(args.loops):
        if name not in ("closed", "open"):
            raise WrongUse(f"--loops: {name!r} is unknown: use closed, open or closed,open")
        loops.append(Loop(args.arrivals if name == "open" else None))
    if args.arrivals <= 0:
        raise WrongUse(f"--arrivals: {args.arrivals:g} images per second is not a rate: give more than 0")
    ways, links = _ways(args), find_links(args.links)
    run = LatencyRun(data, args.clip, args.prompt_set, args.seed, store, args.threads, args.timeout, progress=progress)
    return run.run(ways, [(link, loop) for link in links for loop in loops]), run.measured


def _throughput(
    args: argparse.Namespace, data: Dataset, store: PointStore, progress: Progress
) -> tuple[list[dict], int]:
    from benchmarks.timing.routes import family_ways
    from benchmarks.timing.throughput import Rounds
    from benchmarks.timing.throughput_run import ThroughputRun

    if args.rounds < 1 or args.round_s <= 0:
        raise WrongUse("--rounds and --round-s: at least one round of more than 0 seconds")
    rounds = Rounds(args.rounds, args.round_s, args.in_flight)
    ways = [way for bundle in parse_families(args.bundles) for way in family_ways(bundle, args.rates)]
    run = ThroughputRun(
        data, args.clip, args.prompt_set, args.seed, store, rounds, args.device, args.server_threads, progress=progress
    )
    return run.run(ways), run.measured


def _energy(args: argparse.Namespace, data: Dataset, store: PointStore, progress: Progress) -> tuple[list[dict], int]:
    from benchmarks.timing.energy_run import EnergyRun

    run = EnergyRun(data, args.clip, args.prompt_set, args.seed, store, args.device, args.threads, progress=progress)
    return run.run(_ways(args)), run.measured


# ---------------------------------------------------------------- arguments


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))


def _ways(args: argparse.Namespace) -> list[Way]:
    from benchmarks.timing.routes import family_ways, on_edge_way, peer_ways
    from thinwire.bundle import load_bundle

    bundles = parse_families(args.bundles)
    ways = [way for bundle in bundles for way in family_ways(bundle, args.rates)]
    host = bundles[0] if bundles else load_bundle(DEFAULT_BUNDLE)
    for peer in parse_peers(args.peers):
        if peer.name == "jxl":  # the service opens image files by Pillow
            raise WrongUse("--peers: the service reads no JPEG XL: leave jxl out")
        ways += peer_ways(peer, host, _hull(args.hull, peer.name) if args.hull else _peer_points(args.peer_points))
    if args.on_edge:
        ways.append(on_edge_way(load_bundle(args.on_edge)))
    if not ways:
        raise WrongUse("nothing to measure: name --bundles, --peers or --on-edge")
    return ways


def _peer_points(text: str) -> list[tuple[int, float]]:
    try:
        pairs = [each.split(":") for each in text.split(",") if each.strip()]
        return [(int(side), float(value)) for side, value in pairs]
    except ValueError:
        raise WrongUse(f"--peer-points: {text!r} is not a list of SIDE:VALUE, like 224:20,112:20") from None


def _hull(path: str, peer: str) -> list[tuple[int, float]]:
    """(side of a 224-pixel view, dial) of a peer's Pareto points in a rate-accuracy document."""
    from benchmarks.codecs.peers import PEERS

    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        full = min(document["view"])
        rows = [row for row in document["points"] if row["kind"] == "peer" and row["codec"] == peer and row["hull"]]
        settings = [row["parameters"] for row in rows]
        return [(round(224 * each["side"] / full), each[PEERS[peer].dial]) for each in settings]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"--hull: {path} is not a document of `thinwire-bench rate-accuracy` ({error!r})") from error
