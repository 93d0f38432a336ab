"""`thinwire-cloud`: the service's command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Sequence

from cloud.config import Config, add_flags, load_config
from cloud.errors import BadConfiguration
from cloud.search import client_commands
from cloud.watch.logs import set_up_logs
from thinwire.files import told
from thinwire.platforms import ON_WINDOWS, is_windows, missing_module, usable_cores
from thinwire.text import safe_streams

_WHERE = (
    "Settings come from flags, then THINWIRE_* variables (--tls-cert is THINWIRE_TLS_CERT), then the TOML file of "
    "--config (tls-cert = ...), then defaults. docs/service.md has a table of them."
)
_EXAMPLES = """
examples:
  thinwire-cloud serve
      the shipped CLIP and codecs on 127.0.0.1:50051
  thinwire-cloud serve --host 0.0.0.0 --tls-cert tls.pem --tls-key tls.key --token-file tokens
      for other machines: encrypted, and only for clients with a token
  thinwire-cloud serve --clip ViT-B-32:laion2b_s34b_b79k --bundle layered --decoder runs/tune-layered-pixels/decoder
      packets of layered are decoded by what was tuned for that CLIP
  thinwire-cloud serve --adapter runs/adapt-layered/adapter
      packets of the adapter's bundle and rates are embedded by the adapted image tower
  thinwire-cloud serve --clip clip-lite --clip ViT-B-32:laion2b_s34b_b79k --model-mb 2000
      two CLIPs; requests choose by name
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thinwire-cloud", description="CLIP over a thin wire: the service.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="answer packets until SIGTERM or Ctrl-C",
        description=textwrap.fill(
            "Answers packets over gRPC. Prints 'listening on HOST:PORT' to stderr once it is ready. "
            "SIGTERM or Ctrl-C: health turns NOT_SERVING, accepted work is answered, exit 0. SIGHUP: "
            "reads bundles and CLIPs again, and uses them once each has passed a test run. " + _WHERE,
            100,
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check = commands.add_parser(
        "check-config",
        help="print the settings and their sources; report what is wrong",
        description=textwrap.fill(
            "Prints every setting with its source, and checks what can be checked without loading networks: "
            "values, files, certificates, tokens, bundles. Exit 0: `serve` would start to load models. " + _WHERE,
            100,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    client_commands.add_commands(commands)
    add_flags(serve)
    add_flags(check)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `thinwire-cloud`; returns the exit code: 0 stopped in good order, 1 failed, 2 wrong use."""
    safe_streams()
    args = _parser().parse_args(argv)
    from thinwire.errors import ThinwireError

    try:
        if args.command in client_commands.COMMANDS:
            return client_commands.run(args)
        set_up_logs("plain")  # until the settings say how
        config = load_config(args)
        _Say.json = set_up_logs(config["log_format"]) == "json" and args.command == "serve"
        logging.getLogger("cloud").setLevel(logging.INFO if config["verbose"] or _Say.json else logging.WARNING)
        if not config["verbose"]:
            logging.getLogger("cloud.requests").setLevel(logging.WARNING)
        return _check(config) if args.command == "check-config" else _serve(config)
    except ThinwireError as error:
        print(f"thinwire-cloud: {error}", file=sys.stderr)
    except OSError as error:
        print(f"thinwire-cloud: {told(error)}", file=sys.stderr)
    except KeyboardInterrupt:  # before the service has its own handler
        print("thinwire-cloud: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        why = missing_module(error, f"thinwire-cloud {args.command}", "cloud")
        print(f"thinwire-cloud: {why}", file=sys.stderr)
    return 1


def _check(config: Config) -> int:
    from cloud.networks.parts import NamedParts, load_parts

    print("\n".join(config.lines()), flush=True)
    security_of(config).check(config["host"])
    if (web := watch_of(config).web) is not None:
        web.check()
    named = NamedParts(config["bundle"], config["decoder"], config["adapter"])
    for line in load_parts(named, config["clip"], config["precision"]).lines():
        print(f"# {line}")
    print("# in order", flush=True)
    return 0


def security_of(config: Config):
    from cloud.front.access import Security

    return Security(
        certificate=config["tls_cert"],
        key=config["tls_key"],
        client_ca=config["tls_client_ca"],
        token_file=config["token_file"],
        operator_token_file=config["operator_token_file"],
        rate_per_s=config["rate_limit"],
        burst=config["rate_burst"],
        allow_plaintext=config["allow_plaintext"],
    )


def watch_of(config: Config):
    from cloud.watch.options import WatchOptions, WebOptions

    web = None
    if config["http_port"] is not None:
        web = WebOptions(config["http_host"], config["http_port"], config["page"], config["allow_plaintext"])
    return WatchOptions(
        web=web,
        store=config["store"],
        max_bytes=config["store_mb"] << 20,
        max_age_s=config["store_days"] * 86400,
        request_log=config["verbose"],
        traces=config["traces"],
    )


def _open(config: Config):
    from cloud.engine.batching import BatchLimits
    from cloud.engine.items import EngineLimits
    from cloud.networks.assemble import open_engine

    limits = EngineLimits(
        queue_items=config["queue"],
        queue_bytes=config["queue_mb"] << 20,
        pixel_bytes=config["pixel_mb"] << 20,
        max_wait_s=config["max_wait"] or None,
        batch=BatchLimits(items=config["batch"]) if config["batch"] else None,
        decode_threads=config["decode_threads"],
    )
    model_bytes = config["model_mb"] << 20 if config["model_mb"] else None
    threads = config["threads"] or usable_cores()
    return open_engine(
        config["clip"],
        config["bundle"],
        config["device"],
        threads,
        limits,
        model_bytes=model_bytes,
        precision=config["precision"],
        adapters=config["adapter"],
        decoders=config["decoder"],
        synthesis_backend=config["synthesis_backend"],
        clip_backend=config["clip_backend"],
        runtime=config["runtime"],
    )


def _serve(config: Config) -> int:
    start = time.monotonic()
    if is_windows():
        raise BadConfiguration(f"`thinwire-cloud serve` {ON_WINDOWS}")
    from cloud.front.process_tuning import settle_process
    from cloud.front.server import Server, ServerOptions
    from cloud.watch.assemble import Watch

    security = security_of(config)
    security.check(config["host"])  # before models are loaded for nothing
    watch_options = watch_of(config)
    if watch_options.web:
        watch_options.web.check()
    _check_port(config)
    settle_process()
    engine = _open(config)
    for line in engine.lines():
        _say(line)
    if config["allow_plaintext"] and not security.tls:
        _say(f"WARNING: listening on {config['host']} without TLS: anyone on the network can read images and tokens")
    unix = config["host"].startswith("unix:")
    host = f"[{config['host']}]" if ":" in config["host"] and not unix else config["host"]
    options = ServerOptions(
        max_image_file_bytes=config["max_image_mb"] << 20,
        stream_window=config["window"],
        confidence=config["confidence"],
        repeat_bytes=config["repeat_mb"] << 20,
        repeat_age_s=config["repeat_age"],
        evidence_bytes=config["evidence_mb"] << 20,
        evidence_age_s=config["evidence_age"],
        grace_s=config["grace"],
        drain_delay_s=config["drain_delay"],
        reflection=config["reflection"],
        max_connection_age_s=config["max_connection_age"],
    )
    try:
        watch = Watch(engine, watch_options)
    except BaseException:
        engine.close(0)
        raise
    server = Server(engine, host if unix else f"{host}:{config['port']}", options, security, watch)

    async def run() -> bool:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        reloads: set[asyncio.Task] = set()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, lambda: _begin_reload(engine, reloads))
        port = await server.start()
        if watch.web_port is not None:
            shown = "page and metrics" if config["page"] else "metrics"
            _say(f"{shown} on http://{config['http_host']}:{watch.web_port}")
        _say(f"listening on {host}" if unix else f"listening on {host}:{port}")
        logging.getLogger(__name__).info("ready after %.1f s", time.monotonic() - start)
        await stop.wait()
        _say(f"stopping: answering what was accepted (at most {config['grace']:g} s)")
        drained = await server.stop()
        _say(
            ", ".join(f"{count} {what}" for what, count in server.counts.items() if count)
            or "no requests were received"
        )
        return drained

    try:
        drained = asyncio.run(run())
    finally:
        engine.close(0)
    if drained:
        _say("stopped")
        return 0
    _say("stopped before all work was answered: --grace was too short")
    sys.stderr.flush()
    os._exit(1)  # a worker may be stuck inside a network call, which a normal exit would wait for


def _begin_reload(engine, running: set[asyncio.Task]) -> None:
    if running:
        _say("a reload is already running")
        return
    task = asyncio.ensure_future(_reload(engine))
    running.add(task)
    task.add_done_callback(running.discard)


async def _reload(engine) -> None:
    try:
        await asyncio.to_thread(engine.reload)
    except Exception as error:  # whatever is wrong with the new files, the old models go on answering
        _say(f"reload failed, the current models stay in use: {error}")
        return
    _say("reloaded: " + ", ".join(bundle.name for bundle in engine.intake.bundles.values()))


def _check_port(config: Config) -> None:
    """Before models are loaded for nothing. Raises `BadConfiguration` for a port that cannot be listened on."""
    host, port = config["host"], config["port"]
    if not port or host.startswith("unix:"):
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: remains of old connections
            probe.bind(address)
    except OSError as error:
        fix = "is the port taken? Stop what listens there, or name another with --port"
        fix = fix if error.errno == errno.EADDRINUSE else "check --host and --port"
        raise BadConfiguration(f"{host}:{port}: cannot be listened on ({error.strerror}): {fix}") from None


class _Say:
    json = False  # whether lines for people are records too


def _say(text: str) -> None:
    if _Say.json:
        logging.getLogger(__name__).log(logging.WARNING if text.startswith("WARNING") else logging.INFO, "%s", text)
        return
    print(f"thinwire-cloud: {text}" if not text.startswith("listening") else text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
