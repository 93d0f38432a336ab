"""Settings of `thinwire-cloud`: flags over environment over one TOML file over defaults, from one table.

A setting `tls-cert` is the flag `--tls-cert`, the variable `THINWIRE_TLS_CERT` and the TOML key `tls-cert` (or
`tls_cert`). What a setting may hold is checked the same way wherever it comes from.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.errors import BadConfiguration
from thinwire.files import read_file

log = logging.getLogger(__name__)

FORMATS = ("auto", "rich", "plain", "json")
PREFIX = "THINWIRE_"
OWNED_ELSEWHERE = {  # no settings of the service, so no misspelt ones either
    "THINWIRE_CACHE",  # folder of text heads and views
    "THINWIRE_CODER",  # which form of the entropy coder runs
    "THINWIRE_ENV",  # of the Makefile, as the next
    "THINWIRE_LIGHT_ENV",
    "THINWIRE_NATIVE",  # of the build
    "THINWIRE_WORDNET",  # of the workshop
}
MAX_FILE_BYTES = 1 << 20


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is not a port (0 to 65535)")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} is not 1 or more")
    return number


def whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{number} is not 0 or more")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{text} is not a number of seconds, 0 or more")
    return number


def rate(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(f"{text} is not a rate above 0")
    return number


def probability(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise ValueError(f"{text} is not a probability between 0 and 1")
    return number


def words(text: str) -> list[str]:
    """A comma-separated list, as the environment has it."""
    return [word.strip() for word in text.split(",") if word.strip()]


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def device(text: str) -> str:
    if text not in ("auto", "cpu") and not re.fullmatch(r"(cuda|tensorrt)(:\d+)?", text):
        raise ValueError(f"{text!r} is not one of auto, cpu, cuda, cuda:N, tensorrt, tensorrt:N")
    return text


def switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in ("true", "1", "yes", "on")


@dataclass(frozen=True)
class Setting:
    """`read` turns text into a value and raises `ValueError`; None as default means unset."""

    name: str
    read: Callable[[str], Any]
    default: Any
    help: str
    metavar: str = ""

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return PREFIX + self.key.upper()


SETTINGS = (
    Setting(
        "host",
        str,
        "127.0.0.1",
        "address, or unix:PATH, to listen on; others than loopback need TLS or --allow-plaintext",
    ),
    Setting("port", port, 50051, "port to listen on; 0 takes a free one and prints it"),
    Setting(
        "clip",
        words,
        ["clip-lite"],
        "clip-lite (shipped), NAME:TAG (open_clip hub), NAME:/path/to/checkpoint, or a local open_clip folder; "
        "repeatable: the first is the default, others are loaded when a request names them (default: clip-lite)",
        "CLIP",
    ),
    Setting("bundle", words, None, "codec to serve, repeatable (default: all that ship)", "NAME|PATH"),
    Setting(
        "adapter",
        words,
        None,
        "a shipped adapter, or a folder that `thinwire-export adapt` wrote, repeatable: packets of its bundle and "
        "rates are embedded by the adapter's CLIP with the adapter in its image tower (default: still-clip-lite for "
        "stills where clip-lite is served; none: no adapter)",
        "NAME|PATH",
    ),
    Setting(
        "decoder",
        words,
        None,
        "a folder that `thinwire-export tune` wrote, repeatable: decodes packets of its bundle where its CLIP answers, "
        "in the place of the bundle's own decoder (default: none)",
        "PATH",
    ),
    Setting(
        "runtime",
        one_of("auto", "onnx", "torch"),
        "auto",
        "what runs the networks: onnx (ONNX Runtime; torch is never imported), torch; auto takes onnx where every CLIP "
        "has its ONNX form",
    ),
    Setting(
        "device",
        device,
        "auto",
        "auto, cpu, cuda or cuda:N, tensorrt or tensorrt:N (with --runtime onnx); auto takes CUDA when it is there",
    ),
    Setting(
        "precision",
        one_of("auto", "fp32", "bf16", "fp16", "int8"),
        "auto",
        "precision of CLIP's image tower: fp32, bf16 (torch), fp16, int8 (onnx); auto takes fp32 on a CPU",
    ),
    Setting(
        "clip-backend",
        one_of("auto", "torch", "onnx"),
        "auto",
        "with --runtime torch, what runs CLIP's image tower: torch, onnx (ONNX Runtime, on a CPU); auto takes onnx for "
        "convolutional towers",
    ),
    Setting(
        "synthesis-backend",
        one_of("auto", "torch", "onnx"),
        "auto",
        "with --runtime torch, what runs the decoders: torch, onnx (ONNX Runtime); auto takes onnx on a CPU for "
        "architectures that ship",
    ),
    Setting("threads", positive, None, "CPU threads of the networks (default: all cores)"),
    Setting(
        "decode-threads",
        whole,
        None,
        "CPU threads that decode packets; 0: decode on the thread that runs the networks (default: 0 on a CPU of up to "
        "4 cores, else 2)",
    ),
    Setting(
        "model-mb",
        positive,
        None,
        "megabytes of weights kept in memory; beyond it the least recently used are evicted (default: keep all)",
    ),
    Setting("queue", positive, 256, "most requests in the queue; more get QUEUE_FULL"),
    Setting(
        "max-wait",
        seconds,
        0.2,
        "seconds; refuse (QUEUE_FULL) when the estimated queueing delay exceeds this; two batches are always accepted; "
        "0 for no bound",
    ),
    Setting("queue-mb", positive, 64, "most megabytes of request data in the queue; more get QUEUE_FULL"),
    Setting(
        "pixel-mb",
        positive,
        512,
        "most megabytes that image files take to decode at once; more get QUEUE_FULL, one alone is always taken",
    ),
    Setting("batch", positive, None, "largest device batch (default: 8 on a CPU, 64 on CUDA)"),
    Setting("window", positive, 32, "most unanswered frames of one stream"),
    Setting("max-image-mb", positive, 16, "largest image file taken, megabytes"),
    Setting("repeat-mb", whole, 16, "megabytes of answers kept for devices that repeat a request; 0 keeps none"),
    Setting("repeat-age", seconds, 86400.0, "seconds that those answers are kept"),
    Setting(
        "evidence-mb", positive, 16, "megabytes of frames kept that wait for a further packet, of all clients together"
    ),
    Setting("evidence-age", seconds, 60.0, "seconds that such a frame is kept"),
    Setting("confidence", probability, 0.97, "confidence of progressive answers when the request gives none"),
    Setting("tls-cert", Path, None, "this server's certificate chain (PEM); read again when it changes", "FILE"),
    Setting("tls-key", Path, None, "its private key (PEM, not encrypted)", "FILE"),
    Setting("tls-client-ca", Path, None, "accept only clients with a certificate of these authorities (mTLS)", "FILE"),
    Setting(
        "token-file", Path, None, "accept only calls with one of the bearer tokens in this file, one a line", "FILE"
    ),
    Setting(
        "operator-token-file",
        Path,
        None,
        "tokens that may search and delete kept frames (docs/search.md); without this any client may",
        "FILE",
    ),
    Setting("rate-limit", rate, None, "images a second that one client may send (default: no limit)"),
    Setting("rate-burst", positive, None, "images that one client may send at once (default: one second's worth)"),
    Setting("allow-plaintext", switch, False, "listen beyond loopback without TLS (a proxy in front terminates it)"),
    Setting("grace", seconds, 20.0, "seconds that a stopping server goes on answering accepted requests"),
    Setting(
        "drain-delay",
        seconds,
        0.0,
        "seconds between reporting NOT_SERVING and refusing calls, for load balancers that check seldom",
    ),
    Setting(
        "max-connection-age",
        seconds,
        0.0,
        "seconds after which a connection is closed and the client reconnects; 0: never",
    ),
    Setting("http-port", port, None, "port of /metrics, /healthz and the page; 0 takes a free one (default: none)"),
    Setting(
        "http-host",
        str,
        "127.0.0.1",
        "address of the HTTP port; beyond loopback only with --no-page or --allow-plaintext",
    ),
    Setting("page", switch, True, "show the page, with pictures of what was sent, on the HTTP port"),
    Setting("store", Path, None, "keep answered frames in this file, for search (default: nothing is kept)", "FILE"),
    Setting("store-mb", positive, 256, "megabytes of frames kept; the oldest are deleted"),
    Setting("store-days", rate, 7.0, "days that frames are kept"),
    Setting("log-format", one_of(*FORMATS), "auto", "auto, rich (for people), plain, json (for machines)"),
    Setting("traces", str, None, "OpenTelemetry collector (http://HOST:4317), or console", "ENDPOINT"),
    Setting("reflection", switch, False, "offer gRPC reflection, for tools such as grpcurl"),
    Setting("verbose", switch, False, "log more"),
)
BY_KEY = {setting.key: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Config:
    """Checked values by key (`config["tls_cert"]`), and where each came from."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def lines(self) -> list[str]:
        """One `name = value  # source` for each setting: what `check-config` prints. No setting holds a secret."""
        width = max(len(setting.name) for setting in SETTINGS)
        out = []
        for setting in SETTINGS:
            value = self.values[setting.key]
            shown = ",".join(value) if isinstance(value, list) else "-" if value is None else str(value)
            out.append(f"{setting.name:<{width}} = {shown}  # {self.sources[setting.key]}")
        return out


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Every setting as a flag (absent ones stay None, so that it shows which were given), and --config."""
    parser.add_argument("--config", metavar="FILE", help=f"TOML file of settings (or {PREFIX}CONFIG)")
    for setting in SETTINGS:
        text = setting.help
        if setting.default not in (None, False) and "(default" not in text:
            text += f" (default: {setting.default})"
        text = text.replace("%", "%%")
        if setting.read is switch:
            parser.add_argument(f"--{setting.name}", action=argparse.BooleanOptionalAction, default=None, help=text)
        elif setting.read is words:
            parser.add_argument(f"--{setting.name}", action="append", metavar=setting.metavar, help=text)
        else:
            more = {"metavar": setting.metavar} if setting.metavar else {}
            parser.add_argument(f"--{setting.name}", type=_for_flags(setting.read), help=text, **more)


def _for_flags(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def load_config(args: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Config:
    """Flags over environment over file over defaults. Raises `BadConfiguration`, which names setting and source.

    An unknown key in the file is an error: a misspelt limit must not be no limit. An unknown variable is a warning.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {setting.key: setting.default for setting in SETTINGS}
    sources = dict.fromkeys(values, "default")
    path = args.config or environment.get(PREFIX + "CONFIG")
    if path:
        for key, value in _read_file(Path(path)).items():
            values[key], sources[key] = value, str(path)
    known = {setting.variable: setting for setting in SETTINGS}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable in OWNED_ELSEWHERE | {PREFIX + "CONFIG"}:
            continue
        if variable not in known:
            log.warning("%s is not a setting and is ignored", variable)  # other tools may own it
            continue
        setting = known[variable]
        values[setting.key], sources[setting.key] = _checked(setting, text, variable), variable
    for setting in SETTINGS:
        given = getattr(args, setting.key)
        if given is not None:
            values[setting.key], sources[setting.key] = given, f"--{setting.name}"
    return Config(values, sources)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(read_file(path, MAX_FILE_BYTES).decode("utf-8"))
    except OSError as error:
        raise BadConfiguration(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: is not TOML ({error})") from None
    values = {}
    for name, value in document.items():
        setting = BY_KEY.get(name.replace("-", "_"))
        if setting is None:
            raise BadConfiguration(f"{path}: there is no setting {name!r}; known: {_names(s.name for s in SETTINGS)}")
        values[setting.key] = _checked(setting, value, f"{path}, {name}")
    return values


def _checked(setting: Setting, value: Any, source: str) -> Any:
    """A TOML value, or the text of a variable, as the setting has it."""
    if setting.read is words and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    plain = (str, int, float) if setting.read is not switch else (str, bool)
    if not isinstance(value, plain) or (isinstance(value, bool) and setting.read is not switch):
        raise BadConfiguration(f"{source}: {setting.help}; {value!r} is of the wrong kind")
    try:
        return setting.read(str(value))
    except ValueError as error:
        raise BadConfiguration(f"{source}: {error}") from None


def _names(names: Sequence[str] | Any) -> str:
    return ", ".join(sorted(names))
