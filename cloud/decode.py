"""`python -m cloud.decode PACKET... -o OUT`: packet files → the pictures that CLIP would see; no server, no CLIP.

`thinwire-edge decode` runs this in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cloud.errors import CannotDecode
from cloud.networks.choice import has_torch
from cloud.networks.onnx.decoders import load_decoder, why_not
from cloud.networks.onnx.runner import as_picture
from cloud.networks.onnx.session import Place
from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.errors import ThinwireError, UnknownModel
from thinwire.packet import MAX_PACKET_BYTES, Packet

Net = Callable[[np.ndarray, np.ndarray], np.ndarray]  # symbols (B, C, h, w), layers (B,) → RGB (B, 3, H, W) in [0, 1]
PACKET_SUFFIX, PICTURE_SUFFIX = ".twp", ".png"


class Decoder:
    """Packets of any of some bundles → pictures, on the CPU. Each bundle's net is loaded when first needed."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = {bundle.model_id: bundle for bundle in bundles}
        self._nets: dict[bytes, Net] = {}

    def picture(self, data: bytes) -> np.ndarray:
        """A packet's bytes → uint8 (H, W, 3) RGB. Raises `PacketError`, `BundleError` or `CannotDecode`."""
        packet = Packet.from_bytes(data)
        bundle = self._bundles.get(packet.model_id)
        if bundle is None:
            known = ", ".join(f"{each.name} ({each.model_id.hex()})" for each in self._bundles.values()) or "none"
            raise UnknownModel(
                f"the packet was made with model {packet.model_id.hex()}, known here: {known}; "
                "name the bundle that made it with --bundle"
            )
        if bundle.card.cloud["output"] != "pixels":
            raise CannotDecode(f"bundle {bundle.name!r} decodes into CLIP vectors: its packets hold no picture")
        if bundle.model_id not in self._nets:
            self._nets[bundle.model_id] = _net(bundle)
        return as_picture(self._nets[bundle.model_id](bundle.decode(packet)[None], np.array([bundle.level(packet)]))[0])


def _net(bundle: Bundle) -> Net:
    """In ONNX Runtime where it can run the bundle's decoder, else in torch."""
    if importlib.util.find_spec("onnxruntime") is None or (why_not(bundle) and has_torch()):
        from cloud.networks.torch_runtime import numpy_decoder

        return numpy_decoder(bundle)
    return load_decoder(bundle, Place())


def picture_paths(packets: Sequence[str], output: str) -> list[Path]:
    """`output` itself if it ends in .png, else photo.twp → photo.png below the folder `output`.

    Raises `CannotDecode` when two packets would share one file.
    """
    if output.lower().endswith(PICTURE_SUFFIX):
        if len(packets) > 1:
            raise CannotDecode(f"{len(packets)} packets do not fit into one picture: give a folder with -o")
        return [Path(output)]
    taken: dict[Path, str] = {}
    for packet in packets:
        target = Path(output, Path(packet).name.removesuffix(PACKET_SUFFIX) + PICTURE_SUFFIX)
        if target in taken:
            raise CannotDecode(f"{taken[target]} and {packet} would both become {target}: decode them one by one")
        taken[target] = packet
    return list(taken)


def decode_file(decoder: Decoder, packet: str, target: Path) -> tuple[int, int, int]:
    """Decodes one file; returns bytes, width, height. Raises `ThinwireError` whose text begins with the file's name."""
    try:
        with open(packet, "rb") as file:
            data = file.read(MAX_PACKET_BYTES + 1)
        pixels = decoder.picture(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, "PNG")
    except OSError as error:
        raise CannotDecode(f"{error.filename or packet}: {error.strerror or error}") from error
    except ThinwireError as error:
        raise CannotDecode(f"{packet}: {error}") from error
    return len(data), pixels.shape[1], pixels.shape[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 every packet was decoded, 1 some were not, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m cloud.decode", description="Makes pictures of packet files.")
    parser.add_argument("packets", nargs="+", metavar="PACKET", help="packet files")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="OUT.png for one packet; else a folder")
    parser.add_argument("--bundle", metavar="NAME|PATH", help="bundle that made them (default: the shipped one by id)")
    args = parser.parse_args(argv)
    try:
        targets = picture_paths(args.packets, args.output)
        names = shipped_bundles().values() if args.bundle is None else [args.bundle]
        decoder = Decoder([load_bundle(name) for name in names])
    except ThinwireError as error:
        print(f"thinwire: {error}", file=sys.stderr)
        return 2
    failed = 0
    for packet, target in zip(args.packets, targets, strict=True):
        try:
            size, width, height = decode_file(decoder, packet, target)
            print(f"{packet} -> {target}: {width}x{height} pixels of {size} bytes", flush=True)
        except ThinwireError as error:
            failed += 1
            print(f"thinwire: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
