"""`thinwire-edge encode`, `decode` and `inspect`: packets and bundles as files. No server, no gRPC."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.defaults import CANNOT_RUN, OK, SOME_FAILED
from edge.errors import NothingToDo
from edge.line.image_files import Source, find_images
from thinwire.bundle import Bundle, load_bundle, shipped_bundles
from thinwire.card import SYMBOLS
from thinwire.errors import BundleError, CoderMissing, PacketError, ThinwireError
from thinwire.packet import MAX_PACKET_BYTES, VERSION, Packet

PACKET_SUFFIX = ".twp"
DECODER_NEEDS = ("cloud", "synthesis", "torch", "safetensors")

# ---------------------------------------------------------------- encode


def encode(args: argparse.Namespace) -> int:
    """Images → packet files. Returns the exit code."""
    sources = find_images(args.images)
    if not sources:
        raise NothingToDo(f"no image files in {', '.join(args.images)}: name files, or folders that hold some")
    targets = packet_paths(sources, args.output)
    from edge.encoder import Encoder, default_rate

    bundle = load_bundle(args.bundle)
    rate = args.rate or default_rate(bundle)
    bundle.n_layers(rate)
    encoder = Encoder(bundle, args.threads, args.precision, args.provider)
    failed = 0
    for source, target in zip(sources, targets):
        try:
            encoded = encoder.encode_image(source.path, rate)
            _write(target, encoded.packet.to_bytes())
        except ThinwireError as error:
            failed += 1
            _complain(str(error))
            if args.json:
                error_record = {"reason": error.reason, "message": str(error)}
                print(json.dumps({"image": str(source.path), "ok": False, "error": error_record}), flush=True)
            continue
        layers = [len(layer) for layer in encoded.packet.layers]
        if args.json:
            record = {"image": str(source.path), "ok": True, "packet": str(target), "packet_bytes": len(encoded.packet)}
            ms = {"encode_ms": round(encoded.encode_ms, 3), "code_ms": round(encoded.code_ms, 3)}
            print(json.dumps({**record, "layers": layers, "rate": rate, **ms}), flush=True)
        else:
            print(f"{source.path} -> {target}: {len(encoded.packet)} bytes (layers {' + '.join(map(str, layers))})")
    return SOME_FAILED if failed else OK


def packet_paths(sources: Sequence[Source], output: str) -> list[Path]:
    """Where each image's packet goes: `output` itself if it ends in .twp, else below the folder `output`.

    photo.jpg becomes photo.jpg.twp there, so that photo.png finds its own place. Raises `NothingToDo` for a clash.
    """
    if output.lower().endswith(PACKET_SUFFIX):
        if len(sources) > 1:
            raise NothingToDo(f"{len(sources)} images do not fit into one packet file: give a folder with -o")
        return [Path(output)]
    taken: dict[Path, Path] = {}
    for source in sources:
        target = Path(output, source.relative.with_name(source.relative.name + PACKET_SUFFIX))
        if target in taken:
            raise NothingToDo(f"{taken[target]} and {source.path} would both become {target}: encode them one by one")
        taken[target] = source.path
    return list(taken)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise NothingToDo(f"{path}: cannot be written ({error.strerror or error})") from error


# ---------------------------------------------------------------- decode


def decode(args: argparse.Namespace) -> int:
    """Packet files → pictures, by the cloud's decoder in a process of its own: the edge never imports torch."""
    missing = [name for name in DECODER_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        _complain(
            f"decoding needs the cloud's decoder, and {', '.join(missing)} is not installed here: "
            "`pip install 'thinwire[cloud]'`"
        )
        return CANNOT_RUN
    room = Path(importlib.util.find_spec("cloud").submodule_search_locations[0]).parent
    command = [sys.executable, "-P", "-m", "cloud.decode", *_as_operands(args.packets), "-o", args.output]
    if args.bundle:
        command += ["--bundle", args.bundle]
    # -P: a folder called cloud in the user's working directory is not ours; PYTHONPATH: nor need ours be installed
    path = os.pathsep.join(filter(None, [str(room), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def _as_operands(names: Sequence[str]) -> list[str]:
    """File names that cannot be taken for options."""
    return [f"./{name}" if name.startswith("-") else name for name in names]


# ---------------------------------------------------------------- inspect


def inspect(args: argparse.Namespace) -> int:
    """Tells what a packet or a bundle holds. Returns the exit code."""
    target = Path(args.target)
    try:
        if target.is_file():
            facts, lines = _packet_facts(target, args.bundle)
        elif target.is_dir() or args.target in shipped_bundles():
            facts, lines = _bundle_facts(load_bundle(args.target))
        else:
            shipped = ", ".join(shipped_bundles()) or "none"
            raise NothingToDo(
                f"{args.target!r} is not a file, a folder or a bundle that ships with thinwire ({shipped})"
            )
    except (PacketError, BundleError, CoderMissing) as error:
        message = str(error) if str(error).startswith(args.target) else f"{args.target}: {error}"
        _complain(message)
        if args.json:
            print(
                json.dumps({"target": args.target, "ok": False, "error": {"reason": error.reason, "message": message}})
            )
        return SOME_FAILED
    print(json.dumps({"target": args.target, "ok": True, **facts}) if args.json else "\n".join(lines))
    return OK


def _packet_facts(path: Path, extra: str | None) -> tuple[dict[str, Any], list[str]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PACKET_BYTES + 1)  # a larger file cannot be a packet
    except OSError as error:
        raise NothingToDo(f"{path}: cannot be read ({error.strerror or error})") from error
    packet = Packet.from_bytes(data)
    sizes = [len(layer) for layer in packet.layers]
    bundle = find_model(packet.model_id, extra)
    facts = {
        "kind": "packet",
        "version": VERSION,
        "packet_bytes": len(data),
        "overhead_bytes": packet.overhead_bytes,
        "model_id": packet.model_id.hex(),
        "layers": sizes,
        "bundle": bundle.name if bundle else None,
        "rate": None,
    }
    lines = [
        f"{path}: thinwire packet, version {VERSION}",
        f"  bytes     {len(data)}, of which {packet.overhead_bytes} are header, lengths and checksum",
        "  checksum  CRC-32C matches",
    ]
    if bundle is None:
        lines.append(
            f"  model     {packet.model_id.hex()}: no bundle here has this id; point --bundle at the one that does"
        )
        spans = [""] * len(sizes)
    else:
        symbols = bundle.decode(packet)  # raises when the payload is not what an encoder writes
        level = bundle.level(packet)
        facts["rate"] = next((name for name, number in bundle.rates.items() if number == level), None)
        facts["nonzero_symbols"] = int((symbols != 0).sum())
        facts["symbols"] = list(symbols.shape)
        shape = "x".join(map(str, symbols.shape))
        lines.append(f"  model     {packet.model_id.hex()}: bundle {bundle.name} ({bundle.path})")
        lines.append(f"  rate      {facts['rate'] or 'none by that number of layers'} (of {_rates(bundle)})")
        if bundle.has_encoder:
            lines.append(
                f"  symbols   {shape}, {facts['nonzero_symbols']} of {symbols.size} not zero; payload is sound"
            )
            spans = [_span(layer) for layer in bundle.card.wire["layers"]]
        else:
            _, frame = bundle.coder.frame(packet.layers)
            facts["frame_bytes"] = len(frame)
            lines.append(
                f"  frame     AV1, {_still(bundle.card.wire['stills'][level - 1])}, {len(frame)} bytes as AV1 has it; "
                "it decodes"
            )
            spans = [""]
    lines.append(f"  layers    {len(sizes)}")
    lines += [f"    {place + 1:>2}      {size} bytes{spans[place]}" for place, size in enumerate(sizes)]
    return facts, lines


def find_model(model_id: bytes, extra: str | None = None) -> Bundle | None:
    """The bundle of that id: `extra` if given and fitting, else a shipped one; None when there is none.

    Raises `BundleError` for an `extra` that cannot be loaded; a shipped one that cannot is passed over.
    """
    if extra is not None:
        bundle = load_bundle(extra)
        if bundle.model_id == model_id:
            return bundle
    for path in shipped_bundles().values():
        try:
            bundle = load_bundle(path)
        except BundleError as error:
            _complain(str(error))
            continue
        if bundle.model_id == model_id:
            return bundle
    return None


def _bundle_facts(bundle: Bundle) -> tuple[dict[str, Any], list[str]]:
    card, wire = bundle.card, bundle.card.wire
    shipped = {path.resolve() for path in shipped_bundles().values()}
    files = {
        name: {"bytes": entry["bytes"], "present": (bundle.path / name).is_file()}
        for section in (card.edge, card.cloud)
        for name, entry in section["files"].items()
    }
    if "symbols" in wire:
        files[SYMBOLS] = {"bytes": wire["symbols"]["bytes"], "present": True}
    facts = {
        "kind": "bundle",
        "name": bundle.name,
        "path": str(bundle.path),
        "shipped": bundle.path.resolve() in shipped,
        "model_id": bundle.model_id.hex(),
        "family": wire["family"],
        "input": list(bundle.input_size),
        "latent": list(bundle.latent_shape),
        "range": [bundle.coder.low, bundle.coder.high],
        "context": wire.get("context"),
        "layers": [layer["channels"] for layer in wire.get("layers", [])],
        "stills": wire.get("stills", []),
        "rates": bundle.rates,
        "output": card.cloud["output"],
        "clip": card.cloud.get("clip"),
        "files": files,
        "about": card.about,
    }
    height, width = bundle.input_size
    lines = [
        f"{bundle.path}: thinwire bundle {bundle.name!r}{' (ships with thinwire)' if facts['shipped'] else ''}",
        f"  model id  {facts['model_id']}, family {wire['family']}",
        f"  input     {width}x{height} pixels ({wire['input']['resize']}, {wire['input']['filter']})",
        f"  rates     {_rates(bundle)}",
        f"  output    {card.cloud['output']}, tuned for CLIP {card.cloud.get('clip') or 'none in particular'}",
        *_content(bundle),
        "  files",
    ]
    for name, entry in files.items():
        state = "as the card says" if entry["present"] else "not here"
        lines.append(f"    {name:<22}{entry['bytes']:>12,} bytes, {state}")
    for topic, content in card.about.items():
        lines.append(f"  {topic:<9} {json.dumps(content, ensure_ascii=False)}")
    return facts, lines


def _content(bundle: Bundle) -> list[str]:
    """What a packet is made of: layers of symbols, or one still of several rungs."""
    wire, shape = bundle.card.wire, "x".join(map(str, bundle.latent_shape))
    if not bundle.has_encoder:
        return ["  rungs", *(f"    {place + 1:>2}      {_still(each)}" for place, each in enumerate(wire["stills"]))]
    return [
        f"  symbols   {shape} (channels x rows x columns), {bundle.coder.low}..{bundle.coder.high}, "
        f"context {wire['context']}",
        f"  layers    {len(wire['layers'])}",
        *(f"    {place + 1:>2}    {_span(layer)}" for place, layer in enumerate(wire["layers"])),
    ]


def _still(rung: dict[str, Any]) -> str:
    return f"{rung['width']}x{rung['height']} pixels, quality {rung['quality']}, {rung['chroma']}"


def _rates(bundle: Bundle) -> str:
    if not bundle.has_encoder:
        return ", ".join(f"{name} = rung {number}" for name, number in bundle.rates.items())
    return ", ".join(f"{name} = {layers} layer{'s' * (layers > 1)}" for name, layers in bundle.rates.items())


def _span(layer: dict[str, Any]) -> str:
    start, stop = layer["channels"]
    return f"  channels {start}-{stop - 1}"


def _complain(text: str) -> None:
    print(f"thinwire-edge: {text}", file=sys.stderr)
