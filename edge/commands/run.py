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

from edge.commands.classify import labels_of, ladder_of, token_of
from edge.encoder import Encoder, default_rate
from edge.field.courier import Courier
from edge.field.fallback import Fallback, ImageVectors, gives_vectors
from edge.field.in_work import InWork
from edge.field.mqtt import Brokers, MqttSink
from edge.field.rate_control import Budget, Cap, RateControl
from edge.field.run import FieldRun
from edge.field.rung_choice import FrameLadder, RungChoice
from edge.field.service_manager import service_manager
from edge.field.sinks import FileSink, Sink, StreamSink, WebhookSink
from edge.field.sources import open_sources
from edge.field.spool import Spool
from edge.field.views import Gate, parse_crop
from edge.line.client import Question
from edge.line.ladder import Ladder
from edge.line.uplink import Line
from thinwire.bundle import load_bundle
from thinwire.text import shown, without_secrets

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
    outputs = sinks_of(args) or [StreamSink()]
    auto = args.rate == AUTO
    ladder = ladder_of(args)
    bundle = ladder.first.bundle if ladder else load_bundle(args.bundle)
    rate = ladder.first.rate if ladder else list(bundle.rates)[-1] if auto else args.rate or default_rate(bundle)
    control = RateControl(args.deadline, None if auto else bundle.n_layers(rate))
    crop = parse_crop(args.crop) if args.crop else None
    gate = Gate(args.min_change)
    encoder = ladder.widest if ladder else Encoder(bundle, args.threads, args.precision, args.provider)
    images = fallback_of(args, ladder)
    with (
        Spool(args.spool, int(args.spool_mb * 1e6), args.max_age_h * 3600, args.when_full) as spool,
        contextlib.closing(InWork(f"{args.spool}.working")) as in_work,
    ):
        sources = open_sources(args, text, say, in_work)
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
            others=[step.bundle for step in ladder.others] if ladder else (),
        )
        cut_later = len(bundle.coder.layers) >= len(bundle.rates)
        rungs = RungChoice(encoder, courier) if auto and not cut_later and not ladder else None
        yield FieldRun(
            sources,
            encoder,
            rate,
            text,
            spool,
            courier,
            outputs,
            gate,
            say,
            in_work,
            crop,
            fallback,
            rungs,
            FrameLadder(ladder, courier, auto) if ladder else None,
            drain_s=args.drain,
            notify=service_manager(),
        )


def fallback_of(args: argparse.Namespace, ladder: Ladder | None) -> ImageVectors | None:
    """What answers on the device while the link is down: --fallback, or a ladder's first step if it gives vectors."""
    if args.fallback:
        return ImageVectors(load_bundle(args.fallback), args.threads)
    if ladder and gives_vectors(ladder.first.bundle):
        return ImageVectors(ladder.first.bundle, args.threads, ladder.first.encoder)
    return None


def sinks_of(args: argparse.Namespace) -> list[Sink]:
    """The outputs that the options describe; `-` is stdout. A file that two names mean is written once."""
    named = {path if path == "-" else os.path.realpath(path): path for path in reversed(args.out or ())}
    sinks: list[Sink] = [StreamSink() if path == "-" else FileSink(path) for path in reversed(named.values())]
    sinks += [WebhookSink(url) for url in dict.fromkeys(args.webhook or ())]
    brokers = Brokers()
    sinks += [MqttSink(url, brokers) for url in dict.fromkeys(args.mqtt or ())]
    return sinks


def run(args: argparse.Namespace) -> int:
    """`thinwire-edge run`. Returns the exit code."""

    def say(text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a log that is gone or full must not end the run
            print(f"thinwire-edge: {shown(without_secrets(text))}", file=sys.stderr, flush=True)

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
        counts, tally = runner.courier.counts, runner.tally
        say(
            f"{tally.accepted} frames accepted, {counts.answered} answered, {counts.failed + tally.unreadable} failed, "
            f"{tally.unchanged} unchanged, {tally.missed + tally.refused} refused, "
            f"{runner.spool.waiting_frames} still in the spool; {counts.sent_bytes} bytes sent"
        )
        for name, count in runner.unwritten.items():
            say(f"{name}: {count} results are not written, they wait in the spool: fix it and run this again")
        for name, each in runner.results_refused.items():
            say(f"{name}: {each.count} results were refused for good ({each.why}), they are in {each.path}")
        refused = {name: each.count for name, each in runner.results_refused.items()}
        if args.summary:
            facts = {**asdict(tally), **asdict(counts), "waiting": runner.spool.waiting_frames}
            facts |= {"unwritten": sum(runner.unwritten.values()), "unwritten_by": runner.unwritten}
            print(json.dumps({**facts, "results_refused": sum(refused.values()), "results_refused_by": refused}))
    failed = counts.failed or tally.unreadable or tally.sources_failed or refused
    return 0 if complete and not failed else 1
