"""A cascade through the real edge and a real server: whether its answers and bytes are those that were computed, and
how long an answer takes over emulated links."""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.sets import Dataset
from benchmarks.rig.link_proxy import LinkProxy
from benchmarks.rig.links import Link, find_links
from benchmarks.rig.server_process import running_service
from edge.line.client import Client, Outcome
from edge.line.ladder import open_ladder
from edge.line.progressive import classify_progressive

if TYPE_CHECKING:
    from benchmarks.accuracy.cascade_policy import Rungs, Took
    from cloud.engine.text_heads import Head

TIMED = 12  # images over each link, one at a time
LINK_TIMEOUT_S = 60.0


def over_the_wire(args: argparse.Namespace, data: Dataset, rungs: Rungs, took: Took, head: Head) -> dict[str, object]:
    """The first `args.wire` images. took: what was computed of all."""
    count = min(args.wire, len(data.items))
    images = [data.read(item) for item in data.items[:count]]
    ladder = open_ladder(f"{rungs.first.path}:{rungs.first_rate},{rungs.second.path}:{rungs.second_rate}")
    found: dict[str, object] = {"images": count}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_service(args.clip, rungs.first.path, rungs.second.path))
        with Client(server, rungs.first) as client:
            words = {"prompt_set": args.prompt_set, "ladder": ladder}
            outcomes: list[Outcome] = sorted(
                classify_progressive(client, images, data.labels, 1, confidence=args.confidence, **words),
                key=lambda each: each.index,
            )
            got = [None if each.result is None else data.labels.index(each.result.best.label) for each in outcomes]
            sent = [0 if each.result is None else each.result.packet_bytes for each in outcomes]
            found["failed"] = got.count(None)
            found["other_answers"] = sum(label != wanted for label, wanted in zip(got, took.labels[:count].tolist()))
            found["bytes_mean"] = round(float(np.mean(sent)), 1)
            found["computed_bytes_mean"] = round(float(took.answers.sizes[:count].mean()), 1)
            found["edge_ms_p50"] = round(float(np.median([each.result.edge_ms for each in outcomes if each.result])), 2)
        found["links"] = [_timed(link, server, args, data, images, ladder) for link in find_links(args.links)]
    return found


def _timed(link: Link, server: str, args, data: Dataset, images: list[bytes], ladder) -> dict[str, object]:
    """Milliseconds from the image to its answer over one link: first packet alone, cascade, second packet alone."""
    first, second = ladder.first.bundle, ladder.others[0].bundle
    row: dict[str, object] = {"link": link.name}
    with LinkProxy(link, server) as proxy:
        for name, bundle, rate in (
            ("first", first, ladder.first.rate),
            ("second", second, ladder.others[0].rate),
        ):
            with Client(proxy.address, bundle, rate=rate, timeout_s=LINK_TIMEOUT_S) as client:
                client.classify(images[0], data.labels, 1, args.prompt_set)  # connects, and registers the labels
                row[f"{name}_ms"] = _median(
                    lambda image, client=client: client.classify(image, data.labels, 1, args.prompt_set), images
                )
        with Client(proxy.address, first, timeout_s=LINK_TIMEOUT_S) as client:
            words = {"prompt_set": args.prompt_set, "ladder": ladder, "confidence": args.confidence, "in_flight": 1}
            answers = classify_progressive(client, [images[0], *images[:TIMED]], data.labels, 1, **words)
            next(answers)  # connects, and brings the labels across
            row["cascade_ms"] = _median(lambda _: next(answers), images)
    return row


def _median(ask, images: list[bytes]) -> float:
    spent = []
    for image in images[:TIMED]:
        started = time.perf_counter()
        ask(image)
        spent.append(1000 * (time.perf_counter() - started))
    return round(float(np.median(spent)), 1)
