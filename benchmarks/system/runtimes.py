"""ONNX Runtime against PyTorch as what serves: `thinwire-bench runtimes`. Every ratio is of two figures of one run.

start_s: process start to `listening on`, median of the starts, which alternate. images_per_s: answers of a server with
16 requests in flight; all servers are up and take turns, round after round, so that what else runs on the machine meets
them alike. rss_mb: resident memory after at least 1,000 answers. parity: vectors of both forms of the CLIP for the
uncompressed images of each set: worst and mean cosine, and the share of images with one best label.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.system.service_load import EXEC, Load, make_packets, resident_bytes
from edge.defaults import DEFAULT_BUNDLE
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from benchmarks.data.sets import Dataset

IN_FLIGHT = 16
ANSWERS = 1000
ALONE = "torch-alone"
BATCH = 16


class UnknownForm(ThinwireError):
    """A name in --runtimes that is no runtime, or has a precision that it does not offer."""

    reason: ClassVar[str] = "UNKNOWN_RUNTIME"


def add_commands(commands) -> None:
    """Registers `runtimes`, which sets `run`."""
    parser = commands.add_parser(
        "runtimes",
        help="start, throughput, memory and vectors of ONNX Runtime against PyTorch as what serves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE, metavar="NAME|PATH", help="codec (default: %(default)s)")
    parser.add_argument("--clip", default="clip-lite", help="CLIP with both forms (default: %(default)s)")
    parser.add_argument(
        "--runtimes",
        default="onnx,torch",
        metavar="A,B",
        help="onnx, torch, torch-alone (nothing in ONNX Runtime), onnx:int8, onnx:fp16; the others are divided by the "
        "last (default: %(default)s)",
    )
    parser.add_argument("--starts", type=int, default=3, help="starts of each server (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a turn (default: %(default)s)")
    parser.add_argument("--data", nargs="*", default=[], metavar="SET", help="labelled sets for the vectors")
    parser.add_argument("--limit", type=int, help="images of each set")
    parser.add_argument("--json", metavar="PATH", help="also write the JSON document to PATH")
    parser.set_defaults(document=_document)


def _document(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    from benchmarks.data.sets import load_dataset
    from benchmarks.results.testbed import describe
    from thinwire.bundle import resolve_bundle

    path, names = resolve_bundle(args.bundle), _names(args.runtimes)
    sets = {Path(each).name: load_dataset(Path(each), args.limit) for each in args.data}  # before minutes of servers
    document: dict[str, Any] = {"benchmark": "runtimes", "load_average": os.getloadavg()}
    if args.starts or args.rounds:
        servers = {name: _words(name, args.clip, path) for name in names}
        document["servers"] = asyncio.run(_measure(servers, make_packets(path), args))
    if sets:
        document["parity"] = {name: _parity(data, args.clip, names) for name, data in sets.items()}
    return document | {
        "command": shlex.join(["thinwire-bench", *words]),
        "clip": args.clip,
        "bundle": path.name,
        "testbed": describe(),
    }


def _names(text: str) -> list[str]:
    """What --runtimes names. Raises `UnknownForm`."""
    from cloud.networks.onnx.clip import PRECISIONS as OF_ONNX
    from cloud.networks.precision import PRECISIONS as OF_TORCH

    offered = {"onnx": ("", *OF_ONNX), "torch": ("", *OF_TORCH), ALONE: ("",)}
    names = text.split(",")
    for name in names:
        runtime, _, precision = name.partition(":")
        if precision not in offered.get(runtime, ()):
            raise UnknownForm(f"--runtimes: {name!r} is unknown: use onnx, torch or {ALONE}, or a precision: onnx:int8")
    return names


def _words(name: str, clip: str, bundle: Path) -> list[str]:
    runtime, _, precision = name.partition(":")
    if name == ALONE:
        runtime, precision = "torch", ""
    words = ["serve", "--port", "0", "--clip", clip, "--bundle", str(bundle), "--device", "cpu", "--runtime", runtime]
    if name == ALONE:
        words += ["--clip-backend", "torch", "--synthesis-backend", "torch"]
    return [*words, "--precision", precision] if precision else words


@contextlib.contextmanager
def _server(words: Sequence[str]) -> Iterator[tuple[str, int, float]]:
    """A server process; yields its address, its process id, and the seconds it took to start."""
    from benchmarks.rig.server_process import serving

    with tempfile.TemporaryDirectory() as folder:
        pid_file, start = Path(folder) / "pid", time.monotonic()
        with serving([sys.executable, "-c", EXEC, str(pid_file), *words], timeout_s=180) as address:
            yield address, int(pid_file.read_text()), time.monotonic() - start


async def _measure(words: dict[str, list[str]], packets: Sequence[bytes], args: argparse.Namespace) -> dict[str, Any]:
    starts: dict[str, list[float]] = {name: [] for name in words}
    for _ in range(args.starts):
        for name in words:
            with _server(words[name]) as (_, _, took_s):
                starts[name].append(took_s)
    out: dict[str, Any] = {name: {"start_s": _median(starts[name])} for name in words}
    if not args.rounds:
        return out
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(_server(words[name])) for name in words}
        loads = {name: Load(address, packets) for name, (address, _, _) in running.items()}
        rates: dict[str, list[float]] = {name: [] for name in words}
        answered = dict.fromkeys(words, 0)
        for load in loads.values():
            load.lone(20)  # label vectors, caches, the connection
        for number in range(args.rounds):
            for name in list(words)[:: 1 if number % 2 else -1]:
                done = await loads[name].closed(args.seconds, IN_FLIGHT)
                rates[name].append(done.per_s)
                answered[name] += len(done.answered_ms)
            print(f"thinwire-bench: round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        last = list(words)[-1]
        for name in words:
            while answered[name] < ANSWERS:
                answered[name] += len((await loads[name].closed(args.seconds, IN_FLIGHT)).answered_ms)
            out[name] |= {
                "images_per_s": _median(rates[name]),
                "over_last": round(statistics.median(a / b for a, b in zip(rates[name], rates[last])), 3),
                "answers": answered[name],
                "rss_mb": round(resident_bytes(running[name][1]) / 1e6, 1),
            }
            await loads[name].close()
    return out


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def _parity(items: Dataset, clip: str, names: Sequence[str]) -> dict[str, Any]:
    """{form: figures} of every form but torch's own, against that."""
    import torch

    from cloud.engine.text_heads import HeadCache
    from cloud.networks.clip import load_clip
    from cloud.networks.onnx.clip import load_onnx_clip
    from cloud.networks.onnx.session import Place
    from cloud.networks.parity import compare
    from thinwire.imaging import canonical_view, open_image
    from thinwire.prompts import PROMPT_SETS

    original = load_clip(clip)
    forms = {}
    for name in names:
        runtime, _, precision = name.partition(":")
        if runtime == "onnx":
            forms[name] = load_onnx_clip(clip, Place("cpu", 0, torch.get_num_threads()), precision or "fp32")
    vectors: dict[str, list[np.ndarray]] = {"torch": [], **{name: [] for name in forms}}
    size = (original.image_height, original.image_width)
    for start in range(0, len(items.items), BATCH):
        some = items.items[start : start + BATCH]
        views = np.stack([canonical_view(open_image(items.read(each), each.name), *size) for each in some])
        pictures = np.ascontiguousarray(views.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
        vectors["torch"].append(original.encode_images(torch.from_numpy(pictures)).numpy())
        for name, form in forms.items():
            vectors[name].append(form.encode_images(pictures))
    prompts = tuple(PROMPT_SETS["7"])
    classes = HeadCache(original).load(tuple(items.labels), prompts).classes
    targets = np.array([each.target for each in items.items])
    wanted = np.concatenate(vectors["torch"])
    out: dict[str, Any] = {"images": len(targets), "torch_top1": _top1(wanted, classes, targets)}
    for name, form in forms.items():
        got = np.concatenate(vectors[name])
        own = HeadCache(form).load(tuple(items.labels), prompts).classes
        found = compare(wanted, got)
        same = (wanted @ classes.T).argmax(1) == (got @ own.T).argmax(1)
        out[name] = {
            "cosine_min": round(found.cosine_min, 7),
            "cosine_mean": round(float(np.einsum("nd,nd->n", wanted, got).mean()), 7),
            "text_cosine_min": round(float(np.einsum("nd,nd->n", classes, own).min()), 7),
            "same_top1": round(float(same.mean()), 5),
            "top1": _top1(got, own, targets),
        }
    return out


def _top1(vectors: np.ndarray, classes: np.ndarray, targets: np.ndarray) -> float:
    return round(float(((vectors @ classes.T).argmax(1) == targets).mean()), 5)
