"""Every flag of `thinwire-edge` and `thinwire-cloud serve` becomes the option that it names.

Each row passes one flag to the real command, up to the objects that the command builds: their constructors are
recorded.
A flag without a row fails `test_every_flag_of_the_edge_has_a_row` or `test_every_setting_has_a_row`.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("torch")

from cloud.cli import main as cloud_main
from cloud.config import SETTINGS
from cloud.front.server import Server
from cloud.watch.assemble import Watch as CloudWatch
from edge.cli import _parser as edge_parser
from edge.cli import main as edge_main
from edge.commands.doctor import Doctor
from edge.encoder import Encoder
from edge.field.courier import Courier
from edge.field.fallback import ImageVectors
from edge.field.mqtt import MqttSink
from edge.field.rate_control import Budget, Cap, RateControl
from edge.field.run import FieldRun
from edge.field.sinks import FileSink, WebhookSink
from edge.field.spool import Spool
from edge.field.video import Video
from edge.field.views import Gate
from edge.field.watch import WatchedFolder
from edge.line.client import Client
from edge.line.uplink import Line
from tests.edge.certificates import self_signed
from tests.tiny_bundle import photo


class Built(Exception):
    """Ends a command once everything is built."""


class Records:
    """Notes what constructors and functions are given: calls is {name: bound arguments of the last call}."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, dict[str, Any]] = {}
        self._patch = monkeypatch

    def construct(self, kind: type, name: str = "", ends: bool = False) -> None:
        """Notes instances of a class. ends: the command goes no further."""
        self._patch.setattr(kind, "__init__", self._noting(kind.__init__, name or kind.__name__, ends, 1))

    def call(self, target: str, real: Callable, result: Any) -> None:
        """Notes calls of a function, which returns `result` instead of running."""
        name = target.rpartition(".")[2]
        self._patch.setattr(target, self._noting(real, name, False, 0, lambda *_, **__: result))

    def _noting(self, real: Callable, name: str, ends: bool, skip: int, runs: Callable | None = None) -> Callable:
        def noted(*args, **named):
            bound = inspect.signature(real).bind(*args, **named)
            bound.apply_defaults()
            self.calls[name] = dict(list(bound.arguments.items())[skip:])
            if ends:
                raise Built
            return (runs or real)(*args, **named)

        return noted


# ---------------------------------------------------------------- the edge

CAMERA = "rtsp://127.0.0.1:9/nothing"
RUN, CLASSIFY = ("run", "{photo}"), ("classify", "{photo}")
LINE = [  # shared by classify, run and doctor: flag, its value, field of `Line`, expected
    ("--server", "10.0.0.9:4711", "server", "10.0.0.9:4711"),
    ("--timeout", "7.5", "timeout_s", 7.5),
    ("--tls", None, "tls", True),
    ("--tls-ca", "{certificate}", "root_certificate", "{certificate}"),
    ("--tls-cert", "{certificate} --tls-key {key}", "client_certificate", "{certificate}"),
    ("--tls-key", "{key} --tls-cert {certificate}", "client_key", "{key}"),
    ("--token-file", "{token}", "token", "0123456789abcdef0123"),
    ("--device-id", "gate-7", "device_id", "gate-7"),
]
ENCODER = [  # shared by all that encode; field of `Encoder`
    ("--bundle", "{other}", "bundle", lambda bundle: bundle.name == "other"),
    ("--threads", "3", "threads", 3),
    ("--precision", "fp32", "precision", "fp32"),
    ("--provider", "cuda", "provider", "cuda"),
]
asked = json.loads  # the question that the spool keeps beside a frame
# (command, flag, the words after it, "what is built.its argument", expected value or predicate)
EDGE = [
    *((RUN, flag, value, f"Line.{field}", wanted) for flag, value, field, wanted in LINE),
    *((RUN, flag, value, f"Encoder.{field}", wanted) for flag, value, field, wanted in ENCODER),
    (RUN, "--labels", "x,y", "FieldRun.question", lambda text: asked(text)["labels"] == ["x", "y"]),
    (RUN, "--labels-file", "{labels}", "FieldRun.question", lambda text: "from a file" in asked(text)["labels"]),
    (RUN, "--top-k", "2", "FieldRun.question", lambda text: asked(text)["top_k"] == 2),
    (RUN, "--prompt-set", "1", "FieldRun.question", lambda text: asked(text)["prompt_set"] == "1"),
    (RUN, "--rate", "low", "FieldRun.rate", "low"),
    (("run", "{folder}"), "--watch", None, "WatchedFolder.folder", "{folder}"),
    (("run", CAMERA), "--fps", "2.5", "Video.fps", 2.5),
    (RUN, "--min-change", "0.25", "Gate.least_change", 0.25),
    (RUN, "--crop", "0,0,0.5,1", "FieldRun.crop", (0.0, 0.0, 0.5, 1.0)),
    (RUN, "--out", "{folder}/a.jsonl", "FileSink.path", "{folder}/a.jsonl"),
    (RUN, "--webhook", "http://127.0.0.1:9/x", "WebhookSink.url", "http://127.0.0.1:9/x"),
    (RUN, "--mqtt", "mqtt://127.0.0.1/t", "MqttSink.url", "mqtt://127.0.0.1/t"),
    (RUN, "--summary", None, "args.summary", True),
    (RUN, "--spool", "{folder}/other.db", "Spool.path", "{folder}/other.db"),
    (RUN, "--spool-mb", "3", "Spool.max_bytes", 3_000_000),
    (RUN, "--max-age-h", "2", "Spool.max_age_s", 7200),
    (RUN, "--when-full", "drop-oldest", "Spool.when_full", "drop-oldest"),
    (RUN, "--in-flight", "5", "Courier.window", 5),
    (RUN, "--max-kbps", "40", "Cap.max_kbps", 40),
    (RUN, "--mb-per-day", "1.5", "Budget.bytes_per_day", 1_500_000),
    (RUN, "--deadline", "4", "RateControl.deadline_s", 4),
    (RUN, "--confidence", "0.9", "Courier.confidence", 0.9),
    (RUN, "--drain", "11", "FieldRun.drain_s", 11),
    (RUN, "--nice", "5", "nice.increment", 5),
    (RUN, "--fallback", "{other}", "ImageVectors.bundle", lambda bundle: bundle.name == "other"),
    (RUN, "--ladder", "{other},still", "Courier.others", lambda others: [each.name for each in others] == ["still"]),
    *((CLASSIFY, flag, value, f"Client.{field}", wanted) for flag, value, field, wanted in LINE),
    (CLASSIFY, "--bundle", "{other}", "Client.bundle", "{other}"),
    (CLASSIFY, "--rate", "low", "Client.rate", "low"),
    *((CLASSIFY, flag, value, f"Client.{field}", wanted) for flag, value, field, wanted in ENCODER[1:]),
    (CLASSIFY, "--labels", "x,y", "classify_many.labels", ("x", "y")),
    (CLASSIFY, "--labels-file", "{labels}", "classify_many.labels", lambda labels: "from a file" in labels),
    (CLASSIFY, "--top-k", "2", "classify_many.top_k", 2),
    (CLASSIFY, "--prompt-set", "1", "classify_many.prompt_set", "1"),
    (CLASSIFY, "--in-flight", "5", "classify_many.in_flight", 5),
    (CLASSIFY, "--json", None, "args.json", True),
    (CLASSIFY, "--ladder", "{other},still", "Client.bundle", lambda bundle: bundle.name == "other"),
    (CLASSIFY, "--confidence", "0.9", "args.confidence", 0.9),
    *((("doctor",), flag, value, f"Line.{field}", wanted) for flag, value, field, wanted in LINE),
    (("doctor",), "--bundle", "{other}", "Doctor.bundle", "{other}"),
    (("doctor",), "--rate", "low", "Doctor.rate", "low"),
    (("doctor",), "--spool", "{folder}/other.db", "Doctor.spool", "{folder}/other.db"),
    (("doctor",), "--json", None, "args.json", True),
    (("doctor",), "--ladder", "{other},still", "Doctor.ladder", "{other},still"),
    *((("doctor",), flag, value, f"Doctor.{field}", wanted) for flag, value, field, wanted in ENCODER[1:]),
    *((("bench",), flag, value, f"Encoder.{field}", wanted) for flag, value, field, wanted in ENCODER),
    (("bench",), "--rate", "low", "args.rate", "low"),
    (("bench",), "--frames", "7", "args.frames", 7),
    *((("encode", "{photo}"), flag, value, f"Encoder.{field}", wanted) for flag, value, field, wanted in ENCODER),
    (("encode", "{photo}"), "--output", "{folder}/b.twp", "args.output", "{folder}/b.twp"),
    (("encode", "{photo}"), "--rate", "low", "args.rate", "low"),
    (("encode", "{photo}"), "--json", None, "args.json", True),
    (("decode", "a.twp"), "--output", "a.png", "args.output", "a.png"),
    (("decode", "a.twp"), "--bundle", "{other}", "args.bundle", "{other}"),
    (("inspect", "a.twp"), "--bundle", "{other}", "args.bundle", "{other}"),
    (("inspect", "a.twp"), "--json", None, "args.json", True),
    (("status",), "--spool", "{folder}/other.db", "args.spool", "{folder}/other.db"),
    (("status",), "--json", None, "args.json", True),
    (("bundle", "list"), "--store", "{folder}", "args.store", "{folder}"),
    (("bundle", "install", "x"), "--card-sha256", "5f2c", "args.card_sha256", "5f2c"),
    (("bundle", "install", "x"), "--public-key", "{key}", "args.public_key", "{key}"),
]
ALWAYS = {"encode": ["--output", "{folder}/a.twp"], "decode": ["--output", "a.png"]}


@pytest.fixture
def places(tmp_path, tiny_bundle, tmp_path_factory) -> dict[str, str]:
    from tests.tiny_bundle import make_tiny_bundle

    certificate, key = self_signed(tmp_path)
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    (tmp_path / "labels").write_text("from a file\n")
    (tmp_path / "settings.toml").write_text("queue = 77\n")
    photo(tmp_path, "photo.jpg")
    return {
        "folder": str(tmp_path),
        "photo": str(tmp_path / "photo.jpg"),
        "token": str(tmp_path / "token"),
        "labels": str(tmp_path / "labels"),
        "settings": str(tmp_path / "settings.toml"),
        "certificate": str(certificate),
        "key": str(key),
        "bundle": str(tiny_bundle.path),
        "other": str(make_tiny_bundle(tmp_path / "other", name="other").path),
    }


def check(found: dict[str, dict[str, Any]], where: str, wanted: Any, places: dict[str, str]) -> None:
    name, _, field = where.partition(".")
    assert name in found, f"{name} was not built; built: {', '.join(found)}"
    value = found[name][field]
    if callable(wanted):
        assert wanted(value), value
    elif isinstance(wanted, str):
        assert str(value) == wanted.format(**places)
    else:
        assert value == wanted


def edge_words(start, flag, value, places) -> list[str]:
    words = [*start, *ALWAYS.get(start[0], [])]
    if start[0] in ("run", "classify"):
        words += ["--labels", "a,b"]
    if start[0] in ("run", "classify", "doctor", "bench", "encode") and flag != "--ladder":  # which replaces it
        words += ["--bundle", "{bundle}"]
    if start[0] == "run":
        words += ["--spool", "{folder}/spool.db"]
    return [word.format(**places) for word in [*words, flag, *(value or "").split()]]


@pytest.mark.parametrize(("start", "flag", "value", "where", "wanted"), EDGE, ids=lambda each: str(each)[:24])
def test_a_flag_of_the_edge_becomes_its_option(start, flag, value, where, wanted, places, monkeypatch):
    words = edge_words(start, flag, value, places)
    records = Records(monkeypatch)
    records.calls["args"] = vars(edge_parser().parse_args(words))
    if not where.startswith("args."):
        for kind in (Line, Spool, Cap, Budget, Courier, Gate, RateControl, FileSink, WebhookSink, MqttSink):
            records.construct(kind)
        records.construct(WatchedFolder)
        records.construct(Video)
        records.construct(FieldRun, ends=True)
        records.construct(Doctor, ends=True)
        records.construct(ImageVectors, ends=True)
        # "cuda" and the like are not on this machine: what the encoder is asked for is what counts
        records.construct(Encoder, ends=where.startswith("Encoder."))
        records.construct(Client, ends=where.startswith("Client."))
        monkeypatch.setattr(Client, "check", lambda self: None)
        monkeypatch.setattr(Client, "classify_many", records._noting(Client.classify_many, "classify_many", True, 1))
        records.call("os.nice", lambda increment: 0, 0)
        with pytest.raises(Built):
            edge_main(words)
    check(records.calls, where, wanted, places)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def test_every_flag_of_the_edge_has_a_row():
    commands = next(a for a in edge_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    every = {(name, flag) for name, parser in commands.items() for flag in flags_of(parser) - {"--help"}}
    assert every == {(start[0], flag) for start, flag, *_ in EDGE}


# ---------------------------------------------------------------- the service

TLS = "--tls-cert {certificate} --tls-key {key} "
HTTP = "--http-port 0 "
# {setting: (words, what is built.its argument, expected)}
SERVE = {
    "host": ("--host 127.0.0.2", "Server.address", "127.0.0.2:50051"),
    "port": ("--port 4711", "Server.address", "127.0.0.1:4711"),
    "clip": ("--clip a --clip b", "open_engine.clip", ["a", "b"]),
    "bundle": ("--bundle {bundle}", "open_engine.bundles", lambda names: len(names) == 1),
    "adapter": ("--adapter {folder}", "open_engine.adapters", lambda names: len(names) == 1),
    "decoder": ("--decoder {folder}", "open_engine.decoders", lambda names: len(names) == 1),
    "runtime": ("--runtime onnx", "open_engine.runtime", "onnx"),
    "device": ("--device cpu", "open_engine.device", "cpu"),
    "precision": ("--precision fp32", "open_engine.precision", "fp32"),
    "clip-backend": ("--clip-backend torch", "open_engine.clip_backend", "torch"),
    "synthesis-backend": ("--synthesis-backend onnx", "open_engine.synthesis_backend", "onnx"),
    "threads": ("--threads 3", "open_engine.threads", 3),
    "decode-threads": ("--decode-threads 4", "open_engine.limits", lambda limits: limits.decode_threads == 4),
    "model-mb": ("--model-mb 5", "open_engine.model_bytes", 5 << 20),
    "queue": ("--queue 9", "open_engine.limits", lambda limits: limits.queue_items == 9),
    "max-wait": ("--max-wait 0.5", "open_engine.limits", lambda limits: limits.max_wait_s == 0.5),
    "queue-mb": ("--queue-mb 3", "open_engine.limits", lambda limits: limits.queue_bytes == 3 << 20),
    "pixel-mb": ("--pixel-mb 700", "open_engine.limits", lambda limits: limits.pixel_bytes == 700 << 20),
    "batch": ("--batch 6", "open_engine.limits", lambda limits: limits.batch.items == 6),
    "window": ("--window 5", "Server.options", lambda options: options.stream_window == 5),
    "max-image-mb": ("--max-image-mb 2", "Server.options", lambda options: options.max_image_file_bytes == 2 << 20),
    "repeat-mb": ("--repeat-mb 3", "Server.options", lambda options: options.repeat_bytes == 3 << 20),
    "repeat-age": ("--repeat-age 60", "Server.options", lambda options: options.repeat_age_s == 60),
    "evidence-mb": ("--evidence-mb 3", "Server.options", lambda options: options.evidence_bytes == 3 << 20),
    "evidence-age": ("--evidence-age 9", "Server.options", lambda options: options.evidence_age_s == 9),
    "confidence": ("--confidence 0.8", "Server.options", lambda options: options.confidence == 0.8),
    "tls-cert": (TLS, "Server.security", lambda security: security.certificate is not None),
    "tls-key": (TLS, "Server.security", lambda security: security.key is not None),
    "tls-client-ca": (TLS + "--tls-client-ca {certificate}", "Server.security", lambda s: s.client_ca is not None),
    "token-file": (TLS + "--token-file {token}", "Server.security", lambda s: s.token_file.name == "token"),
    "operator-token-file": (
        TLS + "--operator-token-file {token}",
        "Server.security",
        lambda security: security.operator_token_file.name == "token",
    ),
    "rate-limit": ("--rate-limit 12", "Server.security", lambda security: security.rate_per_s == 12),
    "rate-burst": ("--rate-limit 1 --rate-burst 8", "Server.security", lambda security: security.burst == 8),
    "allow-plaintext": ("--allow-plaintext", "Server.security", lambda security: security.allow_plaintext),
    "grace": ("--grace 3", "Server.options", lambda options: options.grace_s == 3),
    "drain-delay": ("--drain-delay 2", "Server.options", lambda options: options.drain_delay_s == 2),
    "max-connection-age": (
        "--max-connection-age 90",
        "Server.options",
        lambda options: options.max_connection_age_s == 90,
    ),
    "http-port": ("--http-port 0", "Watch.options", lambda options: options.web.port == 0),
    "http-host": (HTTP + "--http-host 127.0.0.3", "Watch.options", lambda options: options.web.host == "127.0.0.3"),
    "page": (HTTP + "--no-page", "Watch.options", lambda options: options.web.page is False),
    "store": ("--store {folder}/f.db", "Watch.options", lambda options: options.store.name == "f.db"),
    "store-mb": ("--store-mb 2", "Watch.options", lambda options: options.max_bytes == 2 << 20),
    "store-days": ("--store-days 3", "Watch.options", lambda options: options.max_age_s == 3 * 86400),
    "log-format": ("--log-format json", "set_up_logs.form", "json"),
    "traces": ("--traces console", "Watch.options", lambda options: options.traces == "console"),
    "reflection": ("--reflection", "Server.options", lambda options: options.reflection),
    "verbose": ("--verbose", "Watch.options", lambda options: options.request_log),
    "config": ("--config {settings}", "open_engine.limits", lambda limits: limits.queue_items == 77),
}


@pytest.mark.parametrize("setting", list(SERVE))
def test_a_flag_of_the_service_becomes_its_option(setting, places, monkeypatch):
    from cloud.networks.assemble import open_engine
    from cloud.watch.logs import set_up_logs

    words, where, wanted = SERVE[setting]
    assert f"--{setting}" in words or setting == "page"
    engine = MagicMock()
    engine.heads.clip.name, engine.heads.clip.device = "canned", "cpu"
    records = Records(monkeypatch)
    records.call("cloud.networks.assemble.open_engine", open_engine, engine)
    records.call("cloud.cli.set_up_logs", set_up_logs, "plain")
    monkeypatch.setattr("cloud.front.process_tuning.settle_process", lambda: None)
    records.construct(CloudWatch, "Watch")
    records.construct(Server, ends=True)
    with pytest.raises(Built):
        cloud_main(["serve", *words.format(**places).split()])
    check(records.calls, where, wanted, places)


def test_every_setting_has_a_row():
    assert set(SERVE) == {setting.name for setting in SETTINGS} | {"config"}
