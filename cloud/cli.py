"""`thinwire-cloud`: the service's command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one and the text does not tell it by itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default in (None, False) or "(default" in (action.help or "")
        return action.help if plain else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinwire-cloud", description="CLIP over a thin wire: the service.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="answer packets until SIGTERM or Ctrl-C",
        description="Answers packets over gRPC. Prints 'listening on HOST:PORT' to stderr once it is ready. "
        "SIGTERM or Ctrl-C: health turns NOT_SERVING, accepted work is answered, exit 0.",
        formatter_class=_Help,
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; there is no TLS yet, so keep it local"
    )
    serve.add_argument("--port", type=_port, default=50051, help="port to listen on; 0 takes a free one and prints it")
    serve.add_argument(
        "--clip",
        default="clip-lite",
        help="clip-lite (shipped), NAME:TAG (open_clip hub), NAME:/path/to/checkpoint, or a local open_clip folder",
    )
    serve.add_argument(
        "--bundle", action="append", metavar="NAME|PATH", help="codec to serve, repeatable (default: all that ship)"
    )
    serve.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; auto takes CUDA when it is there")
    serve.add_argument("--threads", type=_positive, help="CPU threads of the networks (default: all cores)")
    serve.add_argument("--decode-threads", type=_positive, default=2, help="CPU threads that decode packets")
    serve.add_argument("--queue", type=_positive, default=256, help="requests held at once; more get QUEUE_FULL")
    serve.add_argument(
        "--batch", type=_positive, help="most items of one device batch (default: 8 on a CPU, 64 on CUDA)"
    )
    serve.add_argument("--grace", type=float, default=20.0, help="seconds that a stopping server answers what it holds")
    serve.add_argument("--reflection", action="store_true", help="offer gRPC reflection (for grpcurl and the like)")
    serve.add_argument("--verbose", action="store_true", help="log more")
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port (0 to 65535)")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `thinwire-cloud`; returns the exit code: 0 stopped in good order, 1 failed, 2 wrong use."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="thinwire-cloud: %(levelname)s: %(message)s"
    )
    from thinwire.errors import ThinwireError

    try:
        return _serve(args)
    except ThinwireError as error:
        print(f"thinwire-cloud: {error}", file=sys.stderr)
    except OSError as error:
        print(f"thinwire-cloud: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"thinwire-cloud: {error}: install the service with `pip install 'thinwire[cloud]'`", file=sys.stderr)
    return 1


def _serve(args: argparse.Namespace) -> int:
    start = time.monotonic()
    from cloud.assemble import open_engine
    from cloud.batching import BatchLimits
    from cloud.info import device_name
    from cloud.requests import EngineLimits
    from cloud.server import Server, ServerOptions

    batch = BatchLimits(items=args.batch) if args.batch else None
    limits = EngineLimits(queue_items=args.queue, batch=batch, decode_threads=args.decode_threads)
    engine = open_engine(args.clip, args.bundle, args.device, args.threads or _cores(), limits)
    clip = engine.heads.clip
    names = ", ".join(bundle.name for bundle in engine.intake.bundles.values()) or "none (image files only)"
    _say(f"CLIP {clip.name} on {device_name(clip.device)}, bundles: {names}")
    if args.host not in ("127.0.0.1", "localhost", "::1"):
        _say(f"WARNING: listening on {args.host} without TLS or authentication: anyone who reaches the port can use it")
    host = f"[{args.host}]" if ":" in args.host else args.host
    server = Server(engine, f"{host}:{args.port}", ServerOptions(grace_s=args.grace, reflection=args.reflection))

    async def run() -> bool:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        port = await server.start()
        _say(f"listening on {host}:{port}")
        logging.getLogger(__name__).info("ready after %.1f s", time.monotonic() - start)
        await stop.wait()
        _say(f"stopping: answering what was accepted (at most {args.grace:g} s)")
        return await server.stop()

    try:
        drained = asyncio.run(run())
    finally:
        engine.close(0)
    if drained:
        _say("stopped")
        return 0
    _say("stopped with work unanswered: the grace was too short")
    sys.stderr.flush()
    os._exit(1)  # a worker may be stuck inside a network call, which a normal exit would wait for


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    print(f"thinwire-cloud: {text}" if not text.startswith("listening") else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
