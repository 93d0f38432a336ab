"""Every image through the real edge and the real server, and what that says about accuracy, bytes and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.codecs.grid import TOP_K, UNCOMPRESSED
from benchmarks.codecs.peers import png_bytes
from benchmarks.data.sets import Dataset
from benchmarks.results.store import MAX_MESSAGES
from benchmarks.stats.paired import hits, mcnemar_p, mean_per_class_recall, relative_top1
from edge.errors import ServerUnreachable
from edge.line.client import Client, Result
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image


@dataclass
class Record:
    """What one way of sending did over all images, in the order of the data set. A failed image holds () and NaN."""

    codec: str
    rate: str | None
    predictions: list[tuple[str, ...]] = field(default_factory=list)
    sent_bytes: list[float] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)
    round_trip_ms: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    psnr_db: list[float] = field(default_factory=list)

    def add(self, result: Result, encode_ms: float, psnr_db: float = math.nan) -> None:
        ranked = [prediction.label for prediction in result.predictions]
        self.add_answer(ranked, result.packet_bytes, encode_ms, result.round_trip_ms, psnr_db)

    def add_answer(
        self,
        ranked: Sequence[str],
        sent_bytes: float,
        encode_ms: float,
        round_trip_ms: float = math.nan,
        psnr_db: float = math.nan,
    ) -> None:
        """One image's answer, best label first; NaN for what was not measured."""
        self.predictions.append(tuple(ranked))
        self.sent_bytes.append(sent_bytes)
        self.encode_ms.append(encode_ms)
        self.round_trip_ms.append(round_trip_ms)
        self.psnr_db.append(psnr_db)

    def add_failure(self, message: str) -> None:
        self.predictions.append(())
        for values in (self.sent_bytes, self.encode_ms, self.round_trip_ms, self.psnr_db):
            values.append(math.nan)
        self.messages.append(message)


def summarise(
    record: Record, targets: Sequence[str], reference: Record, pixels: int, seed: int = 0
) -> dict[str, object]:
    """One entry of the result list. Failed images count as wrong in every accuracy and are left out of bytes and times.

    `pixels` of the view turn bytes into bits per pixel; `reference` is the uncompressed record of the same images.
    """
    top1 = hits(record.predictions, targets, 1)
    uncompressed = hits(reference.predictions, targets, 1)
    ratio, interval = relative_top1(top1, uncompressed, seed)
    sent, psnr = _finite(record.sent_bytes), _finite(record.psnr_db)
    return {
        "codec": record.codec,
        "rate": record.rate,
        "bytes_mean": _rounded(sent.mean(), 2) if sent.size else None,
        "bits_per_pixel": _rounded(8 * sent.mean() / pixels, 5) if sent.size else None,
        "top1": _rounded(top1.mean(), 5) if top1.size else None,
        "top5": _rounded(hits(record.predictions, targets, TOP_K).mean(), 5) if top1.size else None,
        "top1_relative": _rounded(ratio, 5),
        "top1_relative_ci95": None if interval is None else [_rounded(end, 5) for end in interval],
        "mcnemar_p": mcnemar_p(top1, uncompressed),
        "mean_per_class_recall": _rounded(mean_per_class_recall(top1, targets), 5),
        "psnr_db": _rounded(psnr.mean(), 3) if psnr.size else None,  # None where no pixels were compared
        "encode_ms_p50": _median(record.encode_ms),
        "round_trip_ms_p50": _median(record.round_trip_ms),
        "n": len(targets),
        "failed": len(targets) - int(sent.size),
        "failure_messages": record.messages[:MAX_MESSAGES],
    }


def evaluate(
    client: Client,
    data: Dataset,
    rates: Sequence[str],
    prompt_set: str = "7",
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, object]]:
    """`collect`, and one summary of each record."""
    return summaries(collect(client, data, rates, prompt_set, progress), client, data, seed)


def summaries(records: Sequence[Record], client: Client, data: Dataset, seed: int = 0) -> list[dict[str, object]]:
    """One for each record of `collect`, the reference first."""
    targets, (height, width) = targets_of(data), client.bundle.input_size
    return [summarise(record, targets, records[0], height * width, seed) for record in records]


def targets_of(data: Dataset) -> list[str]:
    """The true label of each image."""
    return [data.labels[item.target] for item in data.items]


def collect(
    client: Client,
    data: Dataset,
    rates: Sequence[str],
    prompt_set: str = "7",
    progress: Callable[[], None] = lambda: None,
    other: tuple[str, Client, Sequence[str]] | None = None,
) -> list[Record]:
    """Sends every image once as a lossless PNG of its view and once at each rate; one record each, PNG first.

    `other` (a name for the codec, a client of another server, rates) is asked as well, right after; its records come
    last. `progress` is called after each image. encode_ms is the network plus range coding (or writing the PNG).
    Raises `ServerUnreachable` when there is no server to ask; any other error of an image is counted as its failure.
    """
    for rate in rates:
        client.encoder.layers_of(rate)  # a misspelt rate is the caller's error, not a failure of every image
    codec = client.bundle.name
    uncompressed = Record(UNCOMPRESSED, None)
    asked = [(client, Record(codec, rate)) for rate in rates]
    warm_up(client, data.labels, rates, prompt_set)
    if other is not None:
        name, second, its_rates = other
        asked += [(second, Record(name, rate)) for rate in its_rates]
        warm_up(second, data.labels, its_rates, prompt_set)
    records = [record for _, record in asked]
    for item in data.items:
        try:
            view = client.bundle.view(open_image(data.read(item), item.name))
        except ThinwireError as error:
            for record in (uncompressed, *records):
                record.add_failure(str(error))
            progress()
            continue

        def as_png(view: np.ndarray = view) -> tuple[Result, float]:
            started = time.perf_counter()
            png = png_bytes(view)
            encode_ms = 1000 * (time.perf_counter() - started)
            return client.classify_file(png, data.labels, TOP_K, prompt_set), encode_ms

        attempt(uncompressed, item.name, as_png)
        for sender, record in asked:

            def as_packet(
                view: np.ndarray = view, rate: str = record.rate, sender: Client = sender
            ) -> tuple[Result, float]:
                result = sender.classify(view, data.labels, TOP_K, prompt_set, rate)
                return result, result.encode_ms + result.code_ms

            attempt(record, item.name, as_packet)
        progress()
    return [uncompressed, *records]


def warm_up(client: Client, labels: Sequence[str], rates: Sequence[str], prompt_set: str) -> None:
    """Label vectors and lazily built kernels are made once for each list of labels; no image should pay for them."""
    height, width = client.bundle.input_size
    grey = np.full((height, width, 3), 128, np.uint8)
    client.classify_file(png_bytes(grey), labels, 1, prompt_set)
    for rate in rates:
        client.classify(grey, labels, 1, prompt_set, rate)


def attempt(record: Record, name: str, send: Callable[[], tuple[Result, float, *tuple[float, ...]]]) -> None:
    """Adds what `send` returns (the arguments of `Record.add`), or its failure. Raises `ServerUnreachable`."""
    try:
        record.add(*send())
    except ServerUnreachable:
        raise  # a thousand more timeouts would measure nothing
    except ThinwireError as error:
        record.add_failure(f"{name}: {error}")


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _median(values: Sequence[float]) -> float | None:
    finite = _finite(values)
    return _rounded(np.median(finite), 3) if finite.size else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)
