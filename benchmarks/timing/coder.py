"""`thinwire-bench coder`: microseconds to turn symbols into a packet and back, without the networks.

Photographs' symbols are coded at one rate, by each form of the coder (compiled, readable). "warm": one packet after
another; "beside the encoder": the ONNX encoder runs before each, as on a device, so that caches hold its data. Times
are CPU time of the thread, so that other work on the machine counts little; framing and checksum are included.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.testbed import describe

if TYPE_CHECKING:
    from thinwire.bundle import Bundle


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Registers `coder`; sets `document`."""
    parser = commands.add_parser(
        "coder",
        help="microseconds to encode and decode a packet, compiled and in plain Python",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--bundle", default="layered", metavar="NAME|PATH", help="codec")
    parser.add_argument("--rate", default="mid", help="rate of the packets")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="times that each photograph is coded")
    parser.add_argument("--json", metavar="PATH", help="also write the JSON document to PATH")
    parser.set_defaults(document=measure)


def measure(args: argparse.Namespace, words: Sequence[str]) -> dict[str, Any]:
    """The JSON document. Raises `ThinwireError` for an unknown bundle or rate, or one without a range coder."""
    from benchmarks.data.photos import wheel_photos
    from edge.encoder import Encoder
    from thinwire.bundle import load_bundle
    from thinwire.entropy import SymbolCoder
    from thinwire.errors import BundleError
    from thinwire.imaging import open_image

    bundle = load_bundle(args.bundle)
    bundle.n_layers(args.rate)
    if not isinstance(bundle.coder, SymbolCoder):
        raise BundleError(f"bundle {bundle.name!r} has no range coder to time: use one such as layered")
    encoder = Encoder(bundle, threads=1, precision="fp32")
    views = [bundle.view(open_image(photo.data)) for photo in wheel_photos()]
    symbols = [encoder.symbols(view) for view in views]
    forms = {bundle.coder.form: bundle, "readable": readable(bundle)}
    packets = [bundle.encode(each, args.rate) for each in symbols]
    found = {
        form: {
            "warm": _times(each, symbols, args.rate, args.rounds, lambda place: None),
            "beside_the_encoder": _times(each, symbols, args.rate, args.rounds, lambda p: encoder.symbols(views[p])),
        }
        for form, each in forms.items()
    }
    return {
        "benchmark": "coder",
        "command": shlex.join(["thinwire-bench", *words]),
        "testbed": describe(),
        "bundle": bundle.name,
        "rate": args.rate,
        "photos": len(symbols),
        "symbols": bundle.coder.layers[bundle.n_layers(args.rate) - 1][1] * symbols[0][0].size,
        "packet_bytes_mean": round(float(np.mean([len(packet) for packet in packets])), 1),
        "cpu_us": found,
    }


def readable(bundle: Bundle) -> Bundle:
    """The same bundle, coded in plain Python."""
    from dataclasses import replace

    from thinwire.entropy import SymbolCoder

    coder = bundle.coder
    plain = SymbolCoder(coder.tables, coder.shape, coder.layers, coder.context, compiled=False)
    return replace(bundle, coder=plain)


def _times(
    bundle: Bundle, symbols: Sequence[np.ndarray], rate: str, rounds: int, before: Callable[[int], object]
) -> dict[str, float]:
    """CPU microseconds of one packet: least and median, encoding and decoding. `before` runs ahead of each."""
    from thinwire.packet import Packet

    took: dict[str, list[int]] = {"encode": [], "decode": []}
    for number in range(rounds * len(symbols)):
        place = number % len(symbols)
        before(place)
        started = time.thread_time_ns()
        data = bundle.encode(symbols[place], rate).to_bytes()
        took["encode"].append(time.thread_time_ns() - started)
        before(place)
        started = time.thread_time_ns()
        bundle.decode(Packet.from_bytes(data))
        took["decode"].append(time.thread_time_ns() - started)
    return {
        f"{name}_{label}": round(float(choose(values)) / 1000, 1)
        for name, values in took.items()
        for label, choose in (("least", np.min), ("p50", np.median))
    }
