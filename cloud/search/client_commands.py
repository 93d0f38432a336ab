"""`thinwire-cloud search`, `forget` and `kept`: an operator's questions to a running server."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from datetime import datetime
from pathlib import Path

from cloud.errors import InvalidRequest
from thinwire.contract import DEFAULT_SERVER, is_loopback
from thinwire.files import read_file
from thinwire.proxies import proxy_for
from thinwire.text import safe_text

COMMANDS = ("search", "forget", "kept")
MAX_TEXT_BYTES = 1 << 20  # of tokens and certificates
MAX_IMAGE_BYTES = 64 << 20
MAX_SECONDS = 86400.0


def add_commands(commands) -> None:
    search = commands.add_parser(
        "search",
        help="find frames that a server keeps, by text or image",
        description="Finds kept frames (serve --store FILE) that show what a text says or an image shows.",
        epilog='example: thinwire-cloud search "red truck" --when "last night" --device camera-12 --pictures found/',
    )
    search.add_argument("text", nargs="?", help="what the frames should show")
    search.add_argument("--image", type=Path, metavar="FILE", help="an image file or a packet, in place of a text")
    search.add_argument("--like", type=int, metavar="ID", help="a kept frame, in place of a text")
    search.add_argument("--count", type=int, default=10, metavar="K", help="frames to show (10; at most 200)")
    search.add_argument("--clip", default="", help="whose vectors are compared (default: the server's default)")
    search.add_argument("--pictures", type=Path, metavar="DIR", help="also decode what is found into DIR/ID.png")
    search.add_argument("--json", action="store_true", help="one JSON object a line")
    forget = commands.add_parser(
        "forget",
        help="delete frames that a server keeps",
        description="Deletes kept frames for good and prints how many. Say which, or --all.",
    )
    forget.add_argument("--id", type=int, action="append", default=[], metavar="ID", help="this frame; repeatable")
    forget.add_argument("--all", action="store_true", help="everything")
    kept = commands.add_parser("kept", help="how many frames a server keeps", description="Prints it as JSON.")
    for sub in (search, forget):
        group = sub.add_argument_group("which frames")
        group.add_argument("--device", action="append", default=[], metavar="ID", help="of this device; repeatable")
        group.add_argument("--label", action="append", default=[], help="answered as this; repeatable")
        group.add_argument("--when", metavar="WHEN", help="last hour, today, yesterday, last night, last week")
        group.add_argument("--after", metavar="TIME", help="since: 2h (ago), 2026-05-04, 2026-05-04T22:00")
        group.add_argument("--before", metavar="TIME", help="until: likewise")
    for sub in (search, forget, kept):
        line = sub.add_argument_group("the line to the server")
        line.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help=f"server ({DEFAULT_SERVER})")
        line.add_argument("--tls-ca", type=Path, metavar="PEM", help="encrypt; trust the authority in this file")
        line.add_argument("--token-file", type=Path, metavar="FILE", help="file that holds an operator's token")
        line.add_argument("--timeout", type=_seconds, default=30.0, metavar="S", help="seconds that it may take (30)")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_SECONDS or math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from above 0 to {MAX_SECONDS:,.0f}")
    return value


def run(args: argparse.Namespace) -> int:
    """0: done; 1: the server refused, or is not there. Raises `ThinwireError` for wrong use."""
    import grpc

    from thinwire.v1 import search_pb2_grpc

    try:
        request = {"search": _search_request, "forget": _forget_request, "kept": _kept_request}[args.command](args)
    except ValueError as error:  # protobuf's: a number that its field cannot hold, text that is not Unicode
        raise InvalidRequest(f"{args.command}: {safe_text(str(error))}") from error
    token = _token(args.token_file) if args.token_file else ""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    if args.tls_ca:
        credentials = grpc.ssl_channel_credentials(_pem(args.tls_ca))
        channel = grpc.secure_channel(args.server, credentials, options=_options(args.server))
    elif token and not is_loopback(args.server.rpartition(":")[0]):
        raise InvalidRequest(f"a token must not be sent to {args.server} unencrypted: give --tls-ca")
    else:
        channel = grpc.insecure_channel(args.server, options=_options(args.server))
    method = {"search": "SearchFrames", "forget": "DeleteFrames", "kept": "GetStoreInfo"}[args.command]
    with channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        try:
            reply = getattr(stub, method)(request, timeout=args.timeout, metadata=metadata)
        except grpc.RpcError as error:
            print(f"thinwire-cloud: {args.server}: {error.details()} ({error.code().name})", file=sys.stderr)
            return 1
    return {"search": _print_found, "forget": _print_deleted, "kept": _print_info}[args.command](reply, args)


def _token(path: Path) -> str:
    """The first token of a file of tokens. Raises `OSError` or `InvalidRequest`."""
    token = read_file(path, MAX_TEXT_BYTES).partition(b"\n")[0].partition(b"#")[0].strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise InvalidRequest(f"{path}: its first line holds no token, which is printable ASCII without spaces")
    return token.decode()


def _pem(path: Path) -> bytes:
    data = read_file(path, MAX_TEXT_BYTES)
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise InvalidRequest(f"{path}: holds no PEM certificate")
    return data


def filter_of(args: argparse.Namespace, now: datetime):
    """The options of "which frames" → `FrameFilter`. `now`: as for `cloud.search.when`. Raises `InvalidRequest`."""
    from cloud.search.when import moment, span
    from thinwire.v1 import search_pb2

    after = before = None
    if args.when:
        if args.after or args.before:
            raise InvalidRequest("--when replaces --after and --before: give one or the other")
        after, before = span(args.when, now)
    after = moment(args.after, now) if args.after else after
    before = moment(args.before, now) if args.before else before
    return search_pb2.FrameFilter(
        device_ids=args.device,
        labels=args.label,
        after_unix_ms=int(after.timestamp() * 1000) if after else 0,
        before_unix_ms=int(before.timestamp() * 1000) if before else 0,
        ids=getattr(args, "id", []),
    )


def _search_request(args: argparse.Namespace):
    from thinwire.packet import MAGIC
    from thinwire.v1 import inference_pb2 as pb
    from thinwire.v1 import search_pb2

    if sum(each is not None for each in (args.text, args.image, args.like)) != 1:
        raise InvalidRequest('give exactly one query: a text ("red truck"), --image FILE, or --like ID')
    request = search_pb2.SearchFramesRequest(
        filter=filter_of(args, datetime.now()),
        top_k=args.count,
        clip=args.clip,
        with_packets=args.pictures is not None,
    )
    if args.image is not None:
        data = read_file(args.image, MAX_IMAGE_BYTES)
        kind = "packet" if data.startswith(MAGIC) else "image_file"
        request.image.CopyFrom(pb.ImageInput(**{kind: data}))
    elif args.like is not None:
        request.like_id = args.like
    else:
        request.text = args.text
    return request


def _forget_request(args: argparse.Namespace):
    from thinwire.v1 import search_pb2

    return search_pb2.DeleteFramesRequest(filter=filter_of(args, datetime.now()), all=args.all)


def _kept_request(args: argparse.Namespace):
    from thinwire.v1 import search_pb2

    return search_pb2.GetStoreInfoRequest()


def _print_found(reply, args: argparse.Namespace) -> int:
    for frame in reply.frames:
        at = datetime.fromtimestamp(frame.unix_ms / 1000).astimezone()
        best = frame.predictions[0] if frame.predictions else None
        if args.json:
            row = {
                "id": frame.id,
                "similarity": round(frame.similarity, 5),
                "time": at.isoformat(timespec="milliseconds"),
                "device": frame.device_id,
                "predictions": [[each.label, round(each.probability, 4)] for each in frame.predictions],
                "bundle": frame.model.bundle,
                "packet_bytes": frame.packet_bytes,
            }
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            answered = f"{best.label} {100 * best.probability:.0f}%" if best else "-"
            print(f"{frame.id:>8}  {frame.similarity:.3f}  {at:%Y-%m-%d %H:%M:%S}  {frame.device_id}  {answered}")
    if not reply.frames:
        print("thinwire-cloud: no frames", file=sys.stderr)
    if args.pictures is not None:
        _write_pictures(reply.frames, args.pictures)
    return 0


def _write_pictures(frames, folder: Path) -> None:
    from PIL import Image

    from cloud.decode import Decoder
    from thinwire.bundle import load_bundle, shipped_bundles
    from thinwire.errors import ThinwireError

    folder.mkdir(parents=True, exist_ok=True)
    decoder = Decoder([load_bundle(path) for path in shipped_bundles().values()])
    for frame in frames:
        if not frame.packet:
            continue
        try:
            Image.fromarray(decoder.picture(frame.packet)).save(folder / f"{frame.id}.png")
        except ThinwireError as error:
            print(f"thinwire-cloud: frame {frame.id}: {error}", file=sys.stderr)


def _print_deleted(reply, args: argparse.Namespace) -> int:
    print(f"{reply.deleted} frames deleted")
    return 0


def _print_info(reply, args: argparse.Namespace) -> int:
    def moment(unix_ms: int) -> str | None:
        return datetime.fromtimestamp(unix_ms / 1000).astimezone().isoformat(timespec="seconds") if unix_ms else None

    row = {"frames": reply.frames, "bytes": reply.bytes, "dropped": reply.dropped, "devices": list(reply.device_ids)}
    print(json.dumps(row | {"oldest": moment(reply.oldest_unix_ms), "newest": moment(reply.newest_unix_ms)}))
    return 0


def _options(server: str) -> list[tuple[str, int]]:
    """Channel options: no proxy where the one rule for all clients says so."""
    direct = server.startswith("unix:") or proxy_for("grpc", server.rpartition(":")[0]) is None
    return [("grpc.enable_http_proxy", 0)] if direct else []
