"""Puts a `FieldRun` together from the words of a command line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from edge.commands.classify import labels_of, token_of
from edge.encoder import Encoder, default_rate
from edge.field.courier import Courier
from edge.field.fallback import Fallback, ImageVectors
from edge.field.mqtt import MqttSink
from edge.field.rate_control import Budget, Cap, RateControl
from edge.field.run import FieldRun, open_sources
from edge.field.sinks import FileSink, Sink, StreamSink, WebhookSink
from edge.field.sources import Gate, parse_crop
from edge.field.spool import Spool
from edge.line.client import Question
from edge.line.uplink import Line
from thinwire.bundle import load_bundle

AUTO = "auto"


def line_of(args: argparse.Namespace, max_reconnect_s: float = 10.0) -> Line:
    """The connection that the options describe. Raises `ConnectionOptionsError`."""
    return Line(
        args.server,
        args.timeout,
        args.tls,
        args.tls_ca,
        token_of(args),
        args.tls_cert,
        args.tls_key,
        max_reconnect_s,
        args.device_id,
    )


@contextlib.contextmanager
def assemble(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[FieldRun]:
    """Opens everything, and closes it at the end. Raises `ThinwireError` for what keeps the run from starting."""
    line = line_of(args, max_reconnect_s=3.0)
    question = Question.check(labels_of(args), args.top_k, args.prompt_set)
    asked = {"labels": list(question.labels), "top_k": question.top_k, "prompt_set": question.prompt_set}
    text = json.dumps(asked, ensure_ascii=False)
    sinks: list[Sink] = [FileSink(path) for path in args.out or ()]
    sinks += [WebhookSink(url) for url in args.webhook or ()]
    sinks += [MqttSink(url) for url in args.mqtt or ()]
    bundle = load_bundle(args.bundle)
    auto = args.rate == AUTO
    rate = list(bundle.rates)[-1] if auto else args.rate or default_rate(bundle)
    control = RateControl(args.deadline, None if auto else bundle.n_layers(rate))
    crop = parse_crop(args.crop) if args.crop else None
    sources = open_sources(args, text, say)
    encoder = Encoder(bundle, args.threads, args.precision, args.provider)
    images = ImageVectors(load_bundle(args.fallback), args.threads) if args.fallback else None
    with Spool(args.spool, int(args.spool_mb * 1e6), args.max_age_h * 3600, args.when_full) as spool:
        per_day = None if args.mb_per_day is None else int(args.mb_per_day * 1e6)
        fallback = None if images is None else Fallback(images, asked, Path(args.spool).absolute().parent, say)
        courier = Courier(
            line,
            spool,
            bundle,
            control,
            Cap(args.max_kbps),
            Budget(spool, per_day),
            args.in_flight,
            say,
            fallback=fallback,
            confidence=args.confidence,
        )
        gate = Gate(args.min_change)
        outputs = sinks or [StreamSink()]
        yield FieldRun(
            sources, encoder, rate, text, spool, courier, outputs, gate, say, crop, fallback, drain_s=args.drain
        )


def run(args: argparse.Namespace) -> int:
    """`thinwire-edge run`. Returns the exit code."""

    def say(text: str) -> None:
        print(f"thinwire-edge: {text}", file=sys.stderr, flush=True)

    if args.nice:
        os.nice(args.nice)
    with assemble(args, say) as runner:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, lambda *_: runner.stop.set())
        try:
            complete = runner.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        counts = runner.courier.counts
        say(
            f"{runner.tally.accepted} frames accepted, {counts.answered} answered, {counts.failed} failed, "
            f"{runner.tally.unchanged} unchanged, {runner.tally.missed + runner.tally.refused} turned away, "
            f"{runner.spool.waiting_frames} wait in the spool; {counts.sent_bytes} bytes sent"
        )
        if args.summary:
            print(json.dumps({**asdict(runner.tally), **asdict(counts), "waiting": runner.spool.waiting_frames}))
    return 0 if complete and not counts.failed and not runner.tally.unreadable else 1
