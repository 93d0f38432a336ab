"""How fast kept frames are found: `thinwire-bench search`.

Stores made-up unit vectors (clusters, as scenes make them) with packets of the size cameras send, then asks texts
through the engine's text tower and the archive, as the RPC does. text_ms_p50 holds both, for texts never asked before;
vector_ms_p50 the archive alone; filtered_ms_p50 one device of `--devices` within a tenth of the time. Exact search:
recall is 1 by construction. add_us: CPU microseconds of writing one frame, transaction and vector included.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = (("red", "blue", "old", "wet", "small"), ("truck", "dog", "boat", "person", "bicycle", "tree", "cup", "house"))
PLACES = ("", " at night", " in the rain", " on a road", " near water")


def add_commands(commands) -> None:
    """Registers `search`, which sets `run`."""
    parser = commands.add_parser(
        "search",
        help="time of a search over many stored frames",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--clip", default="clip-lite")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_run)


def fill(store, clip_id: str, dim: int, frames: int, devices: int, seed: int) -> float:
    """Writes `frames` frames, one a second since 0; returns CPU microseconds for each."""
    from cloud.search.frames import Frame

    random = np.random.default_rng(seed)
    centres = random.normal(size=(500, dim))
    packet, spent = bytes(500), 0.0
    for start in range(0, frames, 1000):
        count = min(1000, frames - start)
        vectors = centres[random.integers(0, len(centres), count)] + 0.5 * random.normal(size=(count, dim))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        batch = [
            Frame(1000 * (start + row), f"cam-{row % devices}", clip_id, "layered", 4, packet, (("cat", 0.5),), vector)
            for row, vector in enumerate(vectors)
        ]
        before = time.process_time()
        store.add(batch)
        spent += time.process_time() - before
    return 1e6 * spent / frames


def _run(args: argparse.Namespace) -> int:
    from benchmarks.results.testbed import describe
    from benchmarks.system.service_load import resident_bytes
    from cloud.networks.assemble import open_engine
    from cloud.search.archive import Archive
    from cloud.search.frames import Filter, SearchQuery
    from cloud.search.searcher import Searcher
    from cloud.search.store import FrameStore

    engine = open_engine(args.clip, (), "cpu", args.threads)
    clip = engine.heads.clip
    with tempfile.TemporaryDirectory() as folder, engine:
        path = Path(folder) / "frames.db"
        store = FrameStore(path)
        add_us = fill(store, clip.id, clip.embed_dim, args.frames, args.devices, args.seed)
        store.close()
        import os

        before = resident_bytes(os.getpid())
        start = time.perf_counter()
        archive = Archive(path)
        load_s, memory = time.perf_counter() - start, resident_bytes(os.getpid()) - before
        searcher = Searcher(engine, archive)
        texts = itertools.cycle(" ".join(each) + place for place in PLACES for each in itertools.product(*WORDS))
        span_ms = 1000 * args.frames

        async def timed(filters: list[Filter], new: bool) -> list[float]:
            took = []
            for wanted in filters:
                text = next(texts) if new else "a red truck"
                begin = time.perf_counter()
                found = await searcher.search(SearchQuery(text=text, filter=wanted))
                took.append(1000 * (time.perf_counter() - begin))
                if len(found) != 10:
                    raise RuntimeError(f"{len(found)} frames found")
            return took

        random = np.random.default_rng(args.seed + 1)
        narrow = []
        for _ in range(args.queries):
            after = int(random.integers(1, span_ms * 9 // 10))
            device = f"cam-{random.integers(args.devices)}"
            narrow.append(Filter(device_ids=(device,), after_ms=after, before_ms=after + span_ms // 10))
        asyncio.run(timed([Filter()] * 3, False))
        by_text = asyncio.run(timed([Filter()] * args.queries, True))
        by_vector = asyncio.run(timed([Filter()] * args.queries, False))
        filtered = asyncio.run(timed(narrow, False))
        archive.close()
        file_bytes = path.stat().st_size
    document = {
        "benchmark": "search",
        "frames": args.frames,
        "dim": clip.embed_dim,
        "text_ms_p50": round(float(np.median(by_text)), 3),
        "text_ms_p99": round(float(np.percentile(by_text, 99)), 3),
        "vector_ms_p50": round(float(np.median(by_vector)), 3),
        "filtered_ms_p50": round(float(np.median(filtered)), 3),
        "add_us": round(add_us, 2),
        "load_s": round(load_s, 2),
        "memory_bytes_per_frame": round(memory / args.frames, 1),
        "file_bytes_per_frame": round(file_bytes / args.frames, 1),
        "clip": args.clip,
        "command": shlex.join(["thinwire-bench", *sys.argv[1:]]),
        "testbed": describe(),
    }
    print(json.dumps(document, separators=(",", ":"), allow_nan=False), flush=True)
    return 0
