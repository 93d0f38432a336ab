"""`thinwire-edge bench`: what a frame costs this device: milliseconds, bytes, CPU seconds, joules if they are told."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge.encoder import Encoder
from edge.line.image_files import find_images
from thinwire.bundle import load_bundle
from thinwire.errors import ThinwireError

WARM_UP_FRAMES = 5
ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")  # the whole package, other processes included


def bench(args: argparse.Namespace) -> int:
    """Returns the exit code; the last line on stdout is JSON."""
    bundle = load_bundle(args.bundle)
    encoder = Encoder(bundle, args.threads, args.precision, args.provider)
    rate = args.rate or list(bundle.rates)[-1]
    images: list[Any] = [source.path for source in find_images(args.images)] or _patterns(bundle.input_size)
    for place in range(WARM_UP_FRAMES):
        with contextlib.suppress(ThinwireError):  # told below
            encoder.encode_image(images[place % len(images)], rate)
    times: dict[str, list[float]] = {"decode_image_ms": [], "preprocess_ms": [], "encode_ms": [], "code_ms": []}
    sizes: dict[str, list[int]] = {name: [] for name in bundle.rates}
    failed, joules = 0, _joules()
    wall, cpu = time.perf_counter(), time.process_time()
    for place in range(args.frames):
        try:
            encoded = encoder.encode_image(images[place % len(images)], rate)
        except ThinwireError:
            failed += 1
            continue
        for name, values in times.items():
            values.append(getattr(encoded, name))
        if not bundle.has_encoder:  # rates of a still are no prefixes: this one alone was coded
            sizes[rate].append(len(encoded.packet))
            continue
        for name, layers in bundle.rates.items():
            if layers <= len(encoded.packet.layers):
                sizes[name].append(len(encoded.packet.prefix(layers)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = max(1, args.frames - failed)
    used = _joules()
    report = {
        "bundle": bundle.name,
        "encoder": encoder.runs,
        "threads": args.threads,
        "frames": args.frames,
        "failed": failed,
        **{f"{name}_p50": _percentile(values, 50) for name, values in times.items()},
        "encode_ms_p95": _percentile(times["encode_ms"], 95),
        "cpu_s_per_frame": round(cpu / done, 6),
        "frames_per_s": round(done / wall, 1),
        "j_per_frame": None if joules is None or used is None or used < joules else round((used - joules) / done, 4),
        "packet_bytes": {name: round(float(np.mean(values)), 1) for name, values in sizes.items() if values},
    }
    print(json.dumps(report))
    return 0 if not failed else 1


def _patterns(size: tuple[int, int], count: int = 8) -> list[np.ndarray]:
    """Smooth random views uint8 (H, W, 3): no files, so decode_image_ms and preprocess_ms say nothing."""
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 14, 14, 3), np.uint8)
    return [np.asarray(Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC)) for each in coarse]


def _percentile(values: list[float], share: float) -> float | None:
    return round(float(np.percentile(values, share)), 3) if values else None


def _joules() -> float | None:
    try:
        return int(ENERGY.read_text()) / 1e6
    except (OSError, ValueError):
        return None
