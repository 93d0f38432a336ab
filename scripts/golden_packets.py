"""Writes tests/golden: for each shipped bundle, the symbols of two photographs and the packets that they must become.

    python scripts/golden_packets.py [--check] [BUNDLE...]

BUNDLE.npz holds symbols as the fp32 encoder gave them once; BUNDLE.json the length and SHA-256 of the packet of each
rate. Of a still, whose bytes differ between releases of libaom, BUNDLE.json holds whole packets and the SHA-256 of the
pictures that they must become (`scripts/golden_stills.py`). With --check nothing is written: packets must be the golden
ones to the byte, decode to the golden symbols, and the encoder must still give (almost) these symbols; exit code 1 and
a line for each difference otherwise. A new bundle needs new files; another result for an old one breaks the promise of
thinwire/WIRE.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.data.photos import wheel_photos  # noqa: E402
from edge.encoder import Encoder  # noqa: E402
from scripts.golden_stills import still_differences, write_stills  # noqa: E402
from thinwire.bundle import Bundle, load_bundle, shipped_bundles  # noqa: E402
from thinwire.imaging import open_image  # noqa: E402
from thinwire.packet import Packet  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
PHOTOS = ("chelsea.png", "coffee.png")  # PNG: JPEG decoders differ in the last bit

LEAST_EQUAL = {"pixels": 0.999, "embedding": 0.99}
"""Share of symbols that any machine's encoder must agree on, by the card's `cloud.output`. ONNX Runtime differs between
CPUs in the last bit, which moves ties in rounding; in an embedding each stage codes what the stage before left, so one
moved symbol moves those of its axis in all later stages."""


def encode_photos(bundle: Bundle) -> dict[str, np.ndarray]:
    """Photograph → int32 symbols (C, h, w) from the fp32 encoder on this machine."""
    encoder = Encoder(bundle, precision="fp32")
    data = {photo.name: photo.data for photo in wheel_photos()}
    return {name: encoder.symbols(bundle.view(open_image(data[name]))) for name in PHOTOS}


def read_golden(bundle: Bundle) -> tuple[dict[str, np.ndarray], dict]:
    """The golden symbols, int32, and the golden document. Raises FileNotFoundError, which says how to make them."""
    files = GOLDEN / f"{bundle.path.name}.npz", GOLDEN / f"{bundle.path.name}.json"
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: run `python scripts/golden_packets.py {bundle.path.name}`")
    with np.load(files[0], allow_pickle=False) as arrays:
        symbols = {name: arrays[name].astype(np.int32) for name in arrays.files}
    return symbols, json.loads(files[1].read_text())


def describe_packets(bundle: Bundle, symbols: dict[str, np.ndarray]) -> dict:
    """The document of BUNDLE.json for these symbols."""
    photos = {}
    for name, each in symbols.items():
        packets = {rate: bundle.encode(each, rate).to_bytes() for rate in bundle.rates}
        photos[name] = {
            rate: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for rate, data in packets.items()
        }
    return {"model_id": bundle.model_id.hex(), "photos": photos}


def differences(bundle: Bundle) -> list[str]:
    """One line for each way in which `bundle` on this machine is not what the golden files say."""
    try:
        symbols, golden = read_golden(bundle)
    except FileNotFoundError as error:
        return [str(error)]
    name = bundle.path.name
    if golden["model_id"] != bundle.model_id.hex():
        return [f"{name}: golden files are of model {golden['model_id']}, the bundle is {bundle.model_id.hex()}"]
    found = []
    now = describe_packets(bundle, symbols)["photos"]
    for photo, rates in golden["photos"].items():
        for rate in sorted(rates.keys() | now[photo].keys()):
            if rates.get(rate) != now[photo].get(rate):
                found.append(f"{name}: {photo} at {rate} is {now[photo].get(rate)}, golden {rates.get(rate)}")
        best = bundle.encode(symbols[photo], list(bundle.rates)[-1]).to_bytes()
        decoded = bundle.decode(Packet.from_bytes(best))
        if not np.array_equal(decoded, symbols[photo]):
            found.append(f"{name}: {photo} decodes to other symbols than were encoded")
    floor = LEAST_EQUAL[bundle.card.cloud["output"]]
    for photo, each in encode_photos(bundle).items():
        equal = float((each == symbols[photo]).mean())
        if equal < floor:
            found.append(
                f"{name}: the encoder gives {equal:.3%} of the golden symbols of {photo}, less than {floor:.1%}"
            )
    return found


def write_golden(bundle: Bundle) -> None:
    symbols = encode_photos(bundle)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    small = np.int8 if max(np.abs(each).max() for each in symbols.values()) <= 127 else np.int16
    np.savez_compressed(
        GOLDEN / f"{bundle.path.name}.npz", **{name: each.astype(small) for name, each in symbols.items()}
    )
    text = json.dumps(describe_packets(bundle, symbols), indent=1) + "\n"
    (GOLDEN / f"{bundle.path.name}.json").write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE", help="names of shipped bundles (default: all)")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args(argv)
    found = []
    for bundle in map(load_bundle, args.bundles or shipped_bundles().values()):
        if not bundle.coder.exact:
            found += still_differences(bundle) if args.check else []
            if not args.check:
                print(write_stills(bundle))
        elif args.check:
            found += differences(bundle)
        else:
            write_golden(bundle)
            print(GOLDEN / f"{bundle.path.name}.json")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
