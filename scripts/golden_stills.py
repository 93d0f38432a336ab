"""Golden packets of a `still`: what `scripts/golden_packets.py` writes and checks for bundles whose coder is lossy.

tests/golden/BUNDLE.json holds a packet of each rate for two photographs, as hexadecimal digits, the same frame as a
packet that is not packed (`plain`, as devices without a compiled coder send it), and the SHA-256 of the planes that
both must decode to. Encoding again may give other bytes: libaom changes. Decoding may not: AV1 is exact. Packing may
not either: a golden frame must be packed to the golden bytes on every machine.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.data.photos import wheel_photos
from edge.encoder import Encoder
from thinwire.bundle import Bundle
from thinwire.errors import PacketError
from thinwire.imaging import open_image
from thinwire.packet import Packet

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
PHOTOS = ("chelsea.png", "coffee.png")
MOST_OTHER_BYTES = 0.1  # another libaom may need so much more or less for the same picture


def still_packets(bundle: Bundle) -> dict[str, dict[str, bytes]]:
    """Photograph → rate → packet, encoded on this machine."""
    encoder, data = Encoder(bundle), {photo.name: photo.data for photo in wheel_photos()}
    views = {name: bundle.view(open_image(data[name])) for name in PHOTOS}
    return {
        name: {rate: encoder.encode(view, rate).packet.to_bytes() for rate in bundle.rates}
        for name, view in views.items()
    }


def planes_hash(bundle: Bundle, data: bytes) -> str:
    """SHA-256 of the planes uint8 (3, H, W) that a packet holds. Raises `PacketError`."""
    return hashlib.sha256(bundle.decode(Packet.from_bytes(data)).tobytes()).hexdigest()


def plain_packet(bundle: Bundle, data: bytes) -> bytes:
    """A packet → the packet of the same frame that is not packed."""
    level, frame = bundle.coder.frame(Packet.from_bytes(data).layers)
    return Packet(bundle.model_id, (bundle.coder.payload(frame, level, packed=False),)).to_bytes()


def golden_packet(bundle: Bundle, said: dict) -> bytes:
    """Of an entry of the golden document: the packet that this end can read."""
    return bytes.fromhex(said["plain" if bundle.coder.form == "unpacked" else "packet"])


def read_stills(bundle: Bundle) -> dict:
    """The golden document. Raises FileNotFoundError, which says how to make it."""
    file = GOLDEN / f"{bundle.path.name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: run `python scripts/golden_packets.py {bundle.path.name}`")
    return json.loads(file.read_text())


def write_stills(bundle: Bundle) -> Path:
    """Writes the golden document from packets made here; returns its path."""
    photos = {
        name: {
            rate: {
                "packet": data.hex(),
                "plain": plain_packet(bundle, data).hex(),
                "planes_sha256": planes_hash(bundle, data),
            }
            for rate, data in rates.items()
        }
        for name, rates in still_packets(bundle).items()
    }
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / f"{bundle.path.name}.json"
    path.write_text(json.dumps({"model_id": bundle.model_id.hex(), "photos": photos}, indent=1) + "\n")
    return path


def still_differences(bundle: Bundle) -> list[str]:
    """One line for each way in which `bundle` on this machine is not what the golden file says."""
    try:
        golden = read_stills(bundle)
    except FileNotFoundError as error:
        return [str(error)]
    name = bundle.path.name
    if golden["model_id"] != bundle.model_id.hex():
        return [f"{name}: golden packets are of model {golden['model_id']}, the bundle is {bundle.model_id.hex()}"]
    found, now = [], still_packets(bundle)
    for photo, rates in golden["photos"].items():
        for rate, said in rates.items():
            data, plain, again = golden_packet(bundle, said), bytes.fromhex(said["plain"]), now[photo][rate]
            try:
                same = all(planes_hash(bundle, each) == said["planes_sha256"] for each in (data, plain))
                level, frame = bundle.coder.frame(Packet.from_bytes(plain).layers)
            except PacketError as error:
                found.append(f"{name}: the golden packet of {photo} at {rate} is refused: {error}")
                continue
            if not same:
                found.append(f"{name}: the golden packet of {photo} at {rate} decodes to another picture")
            if Packet(bundle.model_id, (bundle.coder.payload(frame, level),)).to_bytes() != data:
                found.append(f"{name}: the golden frame of {photo} at {rate} is packed to other bytes")
            if abs(len(again) - len(data)) > MOST_OTHER_BYTES * len(data):
                found.append(f"{name}: {photo} at {rate} takes {len(again)} bytes here, golden {len(data)}")
    return found
