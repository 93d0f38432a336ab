"""What decoding a large JPEG at a part of its size (`thinwire.decode_cost.draft`) does to views, symbols and packets.

Photographs are enlarged, get grain and are stored as JPEG; each is then seen with and without draft.
Usage: draft_packets.py DATA [--images N] [--megapixels M] [--bundle NAME] [--rate NAME]
"""

from __future__ import annotations

import argparse
import io
from unittest import mock

import numpy as np
from PIL import Image

from benchmarks.data.sets import load_dataset
from edge.encoder import Encoder
from thinwire.bundle import load_bundle
from thinwire.imaging import open_image

GRAIN = 6.0  # standard deviation, of 255
QUALITY = 88


def enlarged(data: bytes, megapixels: float, rng: np.random.Generator) -> bytes:
    """A photograph as a camera of so many megapixels might have stored it."""
    image = open_image(data)
    scale = (1e6 * megapixels / (image.width * image.height)) ** 0.5
    image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image) + rng.normal(0, GRAIN, (image.height, image.width, 3)).astype(np.float32)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--megapixels", type=float, default=20)
    parser.add_argument("--bundle", default="layered")
    parser.add_argument("--rate", default="mid")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    encoder = Encoder(bundle)
    photographs = load_dataset(args.data, args.images)
    rng = np.random.default_rng(0)
    rows = []
    for item in photographs.items:
        data = enlarged(photographs.read(item), args.megapixels, rng)
        drafted = encoder.view(data)
        with mock.patch("thinwire.imaging.draft", return_value=False):
            whole = encoder.view(data)
        apart = np.abs(drafted.astype(int) - whole)
        symbols = [encoder.symbols(view) for view in (drafted, whole)]
        sizes = [len(bundle.encode(each, args.rate).to_bytes()) for each in symbols]
        rows.append((apart.mean(), apart.max(), 100 * np.mean(symbols[0] != symbols[1]), *sizes))
    mean, _, changed, short, long = np.mean(rows, axis=0)
    most = max(row[1] for row in rows)
    print(f"{len(rows)} photographs of {args.megapixels:g} megapixels, {args.bundle} at {args.rate}:")
    print(f"views differ by {mean:.3f} of 255 on average and {most} at most; {changed:.2f} % of the symbols differ")
    print(f"packets {short:.1f} bytes with draft, {long:.1f} without")


if __name__ == "__main__":
    main()
