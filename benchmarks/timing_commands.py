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

from thinwire.errors import ThinwireError
from thinwire.prompts import PROMPT_SETS

if TYPE_CHECKING:
    from benchmarks.data import Dataset
    from benchmarks.timing_points import TimingStore
    from benchmarks.ways import Way
    from thinwire.bundle import Bundle

COMMANDS = ("latency", "throughput", "energy")


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
    throughput.add_argument("--bundles", default="conv", metavar="A,B", help="shipped bundles or folders")
    throughput.add_argument("--rates", default="mid", metavar="A,B", help="rates of the packets, or all")
    throughput.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    throughput.add_argument("--server-threads", type=int, default=0, metavar="N", help="of torch; 0: all cores")
    throughput.add_argument("--in-flight", type=int, metavar="N", help="unanswered requests (default: three batches)")
    throughput.add_argument("--rounds", type=int, default=5, help="turns of bare, engine, served")
    throughput.add_argument("--round-s", type=float, default=4.0, metavar="S", help="seconds of each turn")

    energy = _command(
        commands,
        "energy",
        "joules (RAPL) or CPU-seconds per image, on the edge and in the cloud",
        "Edge: image file to request. Cloud: request to answer through the engine, one at a time, without transport.",
    )
    _add_ways(energy)
    energy.add_argument("--device", default="auto", help="of the cloud side: auto, cpu, cuda or cuda:N")


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
    parser.add_argument("--json", required=True, metavar="OUT", help="where the JSON document goes")
    parser.add_argument("--n", type=int, default=50, metavar="N", help="images, drawn by --seed")
    parser.add_argument("--clip", default="clip-lite", help="CLIP of the server; see thinwire-cloud serve")
    parser.add_argument("--prompt-set", default="7", choices=list(PROMPT_SETS), help="prompt templates")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, the arrivals and the links' draws")
    parser.add_argument(
        "--skip-existing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take points that OUT.points holds from there",
    )
    return parser


def _add_ways(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundles", default="conv", metavar="A,B", help="shipped bundles or folders")
    parser.add_argument("--rates", default="all", metavar="A,B", help="rates of each bundle, or all")
    parser.add_argument("--peers", default="", metavar="A,B", help="jpeg, webp, avif: the view as an image file")
    parser.add_argument(
        "--peer-points", default="224:20,160:20,112:20", metavar="SIDE:VALUE", help="sizes and settings of the peers"
    )
    parser.add_argument(
        "--hull", metavar="JSON", help="instead: the peers' Pareto points of this rate-accuracy document"
    )
    parser.add_argument("--on-edge", metavar="PATH", help="embedding bundle that answers on the device alone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the edge's encoder")


def run(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """Measures what is missing and returns the document. Raises `ThinwireError`."""
    from benchmarks.data import load_dataset
    from benchmarks.testbed import describe
    from benchmarks.timing_points import TimingStore, clip_identity

    command = ["thinwire-bench", *words]
    data = load_dataset(args.data, args.n, args.seed)
    store = TimingStore(Path(args.json + ".points"), command, args.skip_existing)
    started, load_average = time.monotonic(), os.getloadavg()[0]
    points, measured = {"latency": _latency, "throughput": _throughput, "energy": _energy}[args.command](
        args, data, store
    )
    return {
        "benchmark": args.command,
        "command": shlex.join(command),
        "testbed": describe(),
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


def _latency(args: argparse.Namespace, data: Dataset, store: TimingStore) -> tuple[list[dict], int]:
    from benchmarks.latency_run import LatencyRun, Loop
    from benchmarks.links import find_links
    from benchmarks.progress import Bar

    loops = []
    for name in _names(args.loops):
        if name not in ("closed", "open"):
            raise WrongUse(f"--loops: {name!r} is unknown: use closed, open or closed,open")
        loops.append(Loop(args.arrivals if name == "open" else None))
    if args.arrivals <= 0:
        raise WrongUse(f"--arrivals: {args.arrivals:g} images per second never come: give more than 0")
    ways, links = _ways(args), find_links(args.links)
    run = LatencyRun(data, args.clip, args.prompt_set, args.seed, store, args.threads, args.timeout)
    with Bar(len(run.plan(ways, links, loops)) * len(data.items), "latency") as bar:
        return run.run(ways, links, loops, bar), run.measured


def _throughput(args: argparse.Namespace, data: Dataset, store: TimingStore) -> tuple[list[dict], int]:
    from benchmarks.progress import Bar
    from benchmarks.throughput import Service, measure
    from benchmarks.timing_points import timing_key
    from benchmarks.ways import family_ways
    from edge.client import Client, Question

    if args.rounds < 1 or args.round_s <= 0:
        raise WrongUse("--rounds and --round-s: at least one round of more than 0 seconds")
    threads = args.server_threads or len(os.sched_getaffinity(0))
    ways = [way for bundle in _bundles(args.bundles) for way in family_ways(bundle, args.rates)]
    question = Question.check(data.labels, 5, args.prompt_set)
    rows, measured = [], 0
    with Bar(len(ways) * args.rounds, "throughput") as bar:
        for way in ways:
            settings = {
                "kind": way.kind,
                "codec": way.codec,
                "rate": way.rate,
                "parameters": way.parameters,
                "device": args.device,
                "server_threads": threads,
                "in_flight": args.in_flight,
                "rounds": args.rounds,
                "round_s": args.round_s,
            }
            key = timing_key("throughput", data, args.clip, args.prompt_set, args.seed, **settings)
            result = store.load(key)
            if result is None:
                bar.point(f"{way.codec} {way.rate}")
                load_average = os.getloadavg()[0]
                with Client("127.0.0.1:1", way.bundle, way.rate) as client:  # encodes; is never connected
                    prepared = [way.prepare(client, data.read(item), question) for item in data.items]
                packets = [each.request.image.packet for each in prepared]
                service = Service.load(args.clip, way.bundle, args.device, threads, args.in_flight)
                result = measure(
                    service,
                    way.bundle,
                    packets,
                    list(question.labels),
                    args.prompt_set,
                    args.in_flight,
                    args.rounds,
                    args.round_s,
                    bar.tick,
                )
                store.save(key, result, load_average)
                measured += 1
            else:
                bar.skip(args.rounds)
            rows.append({**{name: key[name] for name in ("kind", "codec", "rate", "parameters")}, **result})
    return rows, measured


def _energy(args: argparse.Namespace, data: Dataset, store: TimingStore) -> tuple[list[dict], int]:
    from benchmarks.energy_run import EnergyRun
    from benchmarks.progress import Bar

    ways = _ways(args)
    run = EnergyRun(data, args.clip, args.prompt_set, args.seed, store, args.device, args.threads)
    with Bar(len(run.plan(ways)) * len(data.items), "energy") as bar:
        return run.run(ways, bar), run.measured


# ---------------------------------------------------------------- arguments


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))


def _bundles(text: str) -> list[Bundle]:
    from thinwire.bundle import load_bundle, resolve_bundle

    names = [name.strip() for name in text.split(",") if name.strip()]
    return [load_bundle(path) for path in dict.fromkeys(resolve_bundle(name).resolve() for name in names)]


def _ways(args: argparse.Namespace) -> list[Way]:
    from benchmarks.peers import PEERS, UnknownPeer
    from benchmarks.ways import family_ways, on_edge_way, peer_ways
    from edge.defaults import DEFAULT_BUNDLE
    from thinwire.bundle import load_bundle

    bundles = _bundles(args.bundles)
    ways = [way for bundle in bundles for way in family_ways(bundle, args.rates)]
    host = bundles[0] if bundles else load_bundle(DEFAULT_BUNDLE)
    for name in _names(args.peers):
        if name not in PEERS or name == "jxl":  # the service opens image files by Pillow, which reads no JPEG XL
            known = ", ".join(each for each in PEERS if each != "jxl")
            raise UnknownPeer(f"--peers: {name!r} cannot be sent to the service: use any of {known}")
        ways += peer_ways(PEERS[name], host, _hull(args.hull, name) if args.hull else _peer_points(args.peer_points))
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
        raise WrongUse(f"--peer-points: {text!r} is no list of SIDE:VALUE, like 224:20,112:20") from None


def _hull(path: str, peer: str) -> list[tuple[int, float]]:
    """(side of a 224-pixel view, dial) of a peer's Pareto points in a rate-accuracy document."""
    from benchmarks.peers import PEERS

    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        full = min(document["view"])
        rows = [row for row in document["points"] if row["kind"] == "peer" and row["codec"] == peer and row["hull"]]
        settings = [row["parameters"] for row in rows]
        return [(round(224 * each["side"] / full), each[PEERS[peer].dial]) for each in settings]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongUse(f"--hull: {path} is no document of `thinwire-bench rate-accuracy` ({error!r})") from error
