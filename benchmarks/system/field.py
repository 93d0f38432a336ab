"""What the edge is like in the field: its size, what survives a bad day, and what `--rate auto` is worth.

`thinwire-bench edge-footprint`   rss_mb, cold_start_s, cpu_ms_per_frame
`thinwire-bench field`            frames, lost, duplicated: over a link that is cut, with both ends killed by -9
`thinwire-bench rate-auto`        deadline_met_share, accuracy_ratio: against every fixed rate on a swinging link

All drive the real command line of the edge (or its Python API) in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.rig.bad_link import BadLink, swinging
from edge.defaults import DEFAULT_BUNDLE
from thinwire.errors import ThinwireError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 2.0
SLOW_BPS, FAST_BPS = 20e3, 2e6
LABELS = "cat,dog,car,flower,house"


def add_commands(commands) -> None:
    """Adds them to `thinwire-bench`."""
    form = argparse.ArgumentDefaultsHelpFormatter
    foot = commands.add_parser(
        "edge-footprint", formatter_class=form, help="memory, cold start and CPU per frame of the edge client"
    )
    foot.add_argument("--frames", type=int, default=200, help="224x224 JPEG files to classify")
    foot.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help="codec")
    foot.add_argument("--precision", default="auto", choices=["auto", "fp32", "int8"], help="encoder weights")
    foot.set_defaults(run=run, measure=footprint)
    field = commands.add_parser(
        "field", formatter_class=form, help="send frames over a failing link while server and client are killed"
    )
    field.add_argument("--frames", type=int, default=10_000, help="frames to send")
    field.add_argument("--cut-every", type=float, default=3.0, metavar="S", help="seconds between cuts of the link")
    field.add_argument("--server-kills", type=int, default=3, help="how often the server is killed with -9")
    field.add_argument("--client-kills", type=int, default=2, help="how often the client is killed with -9")
    field.add_argument(
        "--light", action="store_true", help="a server without networks (see benchmarks.rig.canned_server)"
    )
    field.add_argument("--timeout", type=float, default=3600.0, metavar="S", help="stop after this many seconds")
    field.set_defaults(run=run, measure=bad_day)
    auto = commands.add_parser(
        "rate-auto", formatter_class=form, help="compare --rate auto with fixed rates, 20 kbit/s to 2 Mbit/s"
    )
    auto.add_argument("--data", required=True, metavar="TAR|DIR", help="labelled images, as for eval")
    auto.add_argument("--seconds", type=float, default=90.0, help="length of each run")
    auto.add_argument("--fps", type=float, default=3.0, help="frames a second")
    auto.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help="codec")
    auto.add_argument("--seed", type=int, default=0, help="seed of the link's rate changes and of the sample")
    auto.set_defaults(run=run, measure=rate_auto)


def run(args: argparse.Namespace) -> int:
    """Runs one of them; returns the exit code: 0 measured and, where it is a promise, kept; 1 not."""
    from benchmarks.results.testbed import describe

    try:
        document = args.measure(args)
    except ThinwireError as error:
        print(f"thinwire-bench: {error}", file=sys.stderr)
        return 1
    kept = document.pop("kept", True)
    print(json.dumps({**document, "testbed": describe()}, separators=(",", ":")), flush=True)
    return 0 if kept else 1


# ---------------------------------------------------------------- edge-footprint

STEADY = """
import json, sys, time
from pathlib import Path
from edge import Client
server, bundle, precision, folder = sys.argv[1:]
files = sorted(Path(folder).iterdir())
with Client(server, bundle, precision=precision) as client:
    for path in files[:20]:
        client.classify(path, ["cat", "dog"])
    wall, cpu = time.perf_counter(), time.process_time()
    for path in files:
        client.classify(path, ["cat", "dog"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
kb = lambda name: int(status[name].split()[0])
print(json.dumps({"cpu_ms_per_frame": 1000 * cpu / len(files), "wall_ms_per_frame": 1000 * wall / len(files),
                  "rss_mb": kb("VmRSS") * 1024 / 1e6, "peak_rss_mb": kb("VmHWM") * 1024 / 1e6}))
"""


def footprint(args: argparse.Namespace) -> dict[str, Any]:
    """Against a server without networks in this process, so that only the client is measured.

    cold_start_s: from starting `thinwire-edge classify` (Python itself, card and hashes, encoder and its warm-up, the
    check of the server) to its first packet's arrival; the best and the median of 5. rss_mb: resident after the frames,
    one session and one channel open. cpu_ms_per_frame: user and system time of the whole process, reading and decoding
    the JPEG file included, after a warm-up.
    """
    from benchmarks.rig.canned_server import LightService, light_server
    from thinwire.bundle import load_bundle, resolve_bundle

    path = resolve_bundle(args.bundle)
    service = LightService([load_bundle(path)])
    with tempfile.TemporaryDirectory(prefix="thinwire-field-") as name, light_server(service) as address:
        folder = Path(name) / "frames"
        _pictures(folder, args.frames)
        options = ["--server", address, "--bundle", str(path), "--precision", args.precision]
        starts = []
        for _ in range(5):
            service.first_packet_at = None
            before = time.monotonic()
            _finished(["classify", str(next(folder.iterdir())), "--labels", LABELS, "--json", *options])
            starts.append(service.first_packet_at - before)
        command = [sys.executable, "-c", STEADY, address, str(path), args.precision, str(folder)]
        steady = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=_env()).stdout)
    return {
        "benchmark": "edge-footprint",
        "rss_mb": round(steady["rss_mb"], 1),
        "cold_start_s": round(sorted(starts)[2], 3),
        "cpu_ms_per_frame": round(steady["cpu_ms_per_frame"], 2),
        "peak_rss_mb": round(steady["peak_rss_mb"], 1),
        "cold_start_best_s": round(min(starts), 3),
        "wall_ms_per_frame": round(steady["wall_ms_per_frame"], 2),
        "frames": args.frames,
        "bundle": args.bundle,
        "precision": args.precision,
    }


# ---------------------------------------------------------------- field


class _Killable:
    """A process that is started, killed with -9, and started again."""

    def __init__(self, command: list[str], ready: str | None = None) -> None:
        self._command, self._ready = command, ready
        self.kills = 0
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        err = subprocess.PIPE if self._ready else None
        self.process = subprocess.Popen(
            self._command, env=_env(), stdout=subprocess.DEVNULL, stderr=err, stdin=subprocess.DEVNULL, text=True
        )
        if self._ready is None:
            return
        for line in self.process.stderr:
            if line.startswith(self._ready):
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
        raise ThinwireError(f"{' '.join(self._command[:4])} ended with code {self.process.wait()} before it was ready")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def restart(self) -> None:
        self.kills += 1
        self.kill()
        self.start()


def bad_day(args: argparse.Namespace) -> dict[str, Any]:
    """lost: frames of the folder without a final answer in the results; duplicated: final lines beyond the first."""
    started = time.monotonic()
    port = _free_port()
    kind = ["benchmarks.rig.canned_server", str(port)] if args.light else ["cloud.cli", "serve", "--port", str(port)]
    server = _Killable([sys.executable, "-m", *kind], "listening on ")
    with tempfile.TemporaryDirectory(prefix="thinwire-field-") as name:
        folder, out, spool = Path(name) / "frames", Path(name) / "out.jsonl", Path(name) / "spool.db"
        _pictures(folder, args.frames)
        server.start()
        try:
            with BadLink(f"127.0.0.1:{port}") as link:
                words = [str(folder), "--labels", LABELS, "--server", link.address, "--spool", str(spool)]
                words += ["--out", str(out), "--timeout", "5"]
                client = _Killable([sys.executable, "-m", "edge.cli", "run", *words])
                client.start()
                try:
                    _live_through(args, server, client, link, out)
                finally:
                    client.kill()
        finally:
            server.kill()
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        finals = Counter(line["source"] for line in lines if line["final"] and line["ok"])
        wanted = {str(path) for path in folder.iterdir()}
    lost, duplicated = len(wanted - finals.keys()), sum(finals.values()) - len(finals)
    return {
        "benchmark": "field",
        "frames": args.frames,
        "lost": lost,
        "duplicated": duplicated,
        "strangers": len(finals.keys() - wanted),
        "link_cuts": link.cuts,
        "connections": link.connections,
        "server_kills": server.kills,
        "client_kills": client.kills,
        "server": "light" if args.light else "thinwire-cloud serve",
        "wall_s": round(time.monotonic() - started, 1),
        "kept": lost == duplicated == 0 and (server.kills, client.kills) == (args.server_kills, args.client_kills),
    }


def _live_through(args: argparse.Namespace, server: _Killable, client: _Killable, link: BadLink, out: Path) -> None:
    """Cuts and kills by plan until the client has ended by itself."""
    events = [((n + 1) / (args.server_kills + 1), server) for n in range(args.server_kills)]
    events += [((n + 0.6) / (args.client_kills + 1), client) for n in range(args.client_kills)]
    events.sort(key=lambda event: event[0])
    end, cut_at = time.monotonic() + args.timeout, time.monotonic() + args.cut_every
    reported = 0.0
    while client.process.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        if now > end:
            print("thinwire-bench: timed out; missing frames count as lost", file=sys.stderr)
            return
        if now >= cut_at:
            link.cut()
            cut_at = now + args.cut_every
        done = out.read_bytes().count(b"\n") if out.exists() else 0
        if now - reported > 10:
            reported = now
            print(f"{done} of {args.frames} answered", file=sys.stderr, flush=True)
        if events and done >= events[0][0] * args.frames:
            victim = events.pop(0)[1]
            print(f"kill -9 {'server' if victim is server else 'client'} at {done}", file=sys.stderr, flush=True)
            victim.restart()


# ---------------------------------------------------------------- rate-auto


def rate_auto(args: argparse.Namespace) -> dict[str, Any]:
    """The same frames at the same moments over the same swings, with each fixed rate and with auto.

    deadline_met_share: of the frames given to auto, those answered within 2 s of being accepted. accuracy_ratio: auto's
    share of right answers over that of the best fixed rate that meets the deadline for 95 % of its frames; null when
    none does.
    """
    from benchmarks.data.sets import load_dataset
    from benchmarks.rig.server_process import running_service
    from thinwire.bundle import load_bundle, resolve_bundle

    path = resolve_bundle(args.bundle)
    rates = [*load_bundle(path).rates, "auto"]
    frames = int(args.seconds * args.fps)
    data = load_dataset(args.data, frames, args.seed)
    runs = {}
    with tempfile.TemporaryDirectory(prefix="thinwire-field-") as name, running_service("clip-lite", path) as server:
        folder = Path(name)
        files = []
        for place in range(frames):
            item = data.items[place % len(data.items)]
            files.append((folder / f"{place:06}{Path(item.name).suffix}", item.target))
            files[-1][0].write_bytes(data.read(item))
        (folder / "labels.txt").write_text("\n".join(data.labels))
        for rate in rates:
            runs[rate] = _one_rate(rate, args, server, folder, files, data.labels, path)
            print(f"{rate}: {runs[rate]}", file=sys.stderr, flush=True)
    meeting = [each["accuracy"] for rate, each in runs.items() if rate != "auto" and each["deadline_met_share"] >= 0.95]
    best = max(meeting, default=0.0)
    ratio = runs["auto"]["accuracy"] / best if best else None
    return {
        "benchmark": "rate-auto",
        "deadline_met_share": runs["auto"]["deadline_met_share"],
        "accuracy_ratio": None if ratio is None else round(ratio, 4),
        "runs": runs,
        "data": {"name": data.name, "sha256": data.sha256, "images": len(data.items)},
        "frames": frames,
        "fps": args.fps,
        "deadline_s": DEADLINE_S,
        "link_bps": [SLOW_BPS, FAST_BPS],
        "seed": args.seed,
    }


def _one_rate(rate, args, server: str, folder: Path, files: list, labels: tuple[str, ...], bundle: Path) -> dict:
    out = folder / f"{rate}.jsonl"
    with BadLink(server, swinging(SLOW_BPS, FAST_BPS, args.seed), delay_s=0.03) as link:
        words = ["run", "-", "--labels-file", str(folder / "labels.txt"), "--rate", rate, "--server", link.address]
        words += ["--bundle", str(bundle), "--spool", str(folder / f"{rate}.db"), "--out", str(out), "--top-k", "1"]
        words += ["--deadline", str(DEADLINE_S), "--drain", "60"]
        command = [sys.executable, "-m", "edge.cli", *words]
        client = subprocess.Popen(command, env=_env(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            start = time.monotonic()
            for place, (path, _) in enumerate(files):
                time.sleep(max(0.0, start + place / args.fps - time.monotonic()))
                client.stdin.write(f"{path}\n")
                client.stdin.flush()
            client.stdin.close()
            client.wait(120)
        finally:
            if client.poll() is None:
                client.kill()
            client.wait()
        sent = link.bytes_up
    targets = {str(path): labels[target] for path, target in files}
    lines = [line for line in map(json.loads, out.read_text().splitlines()) if line["ok"] and line["final"]]
    in_time = sum(line["latency_ms"] <= 1000 * DEADLINE_S for line in lines)
    right = sum(line["predictions"][0]["label"] == targets[line["source"]] for line in lines)
    return {
        "deadline_met_share": round(in_time / len(files), 4),
        "accuracy": round(right / len(files), 4),
        "answered": len(lines),
        "layers_mean": round(sum(line["layers"] for line in lines) / max(1, len(lines)), 3),
        "packet_bytes_mean": round(sum(line["packet_bytes"] for line in lines) / max(1, len(lines)), 1),
        "link_bytes_up": sent,
    }


# ---------------------------------------------------------------- shared


def _pictures(folder: Path, count: int, distinct: int = 64) -> None:
    """`count` 224x224 JPEG files: hard links to a few distinct pictures, since only their names need to differ."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    first: list[Path] = []
    for place in range(count):
        path = folder / f"{place:06}.jpg"
        if place < distinct:
            coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((224, 224), Image.BICUBIC)
            noise = rng.normal(0, 6, (224, 224, 3))
            Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(path, quality=85)
            first.append(path)
        else:
            os.link(first[place % distinct], path)


def _finished(words: list[str]) -> None:
    command = [sys.executable, "-m", "edge.cli", *words]
    done = subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise ThinwireError(f"thinwire-edge {words[0]} failed: {done.stderr.strip()}")


def _env() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
