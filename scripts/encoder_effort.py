"""What encoder effort buys: bytes at equal quality and milliseconds, on training photographs. Writes a table to stdout.

    python scripts/encoder_effort.py ../shared/data/photos-more.tar --images 48 --json OUT.json

Each setting of an encoder is tried at three sizes and four qualities. Bytes are those of the bare form: what a sender
who shares the constant parts with the receiver would send (benchmarks/codecs/bare_*.py). Changes of bytes are against
the codec's first setting, by Bjontegaard's method: at equal PSNR, and at equal agreement of MobileNetV2 with its answer
to the uncompressed view. Times are CPU time of one thread at 112 pixels, median over all pictures and qualities.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.codecs import bare_jpeg, bare_jxl, bare_webp
from benchmarks.codecs.bare_form import Form
from benchmarks.data.sets import load_dataset
from benchmarks.judges.metrics import psnr_db
from benchmarks.judges.networks import load_network
from benchmarks.results.saving import rate_saving
from thinwire import bare_av1
from thinwire.imaging import canonical_view, open_image

VIEW = 224
SIDES = (80, 112, 160)
TIMED_SIDE = 112


@dataclass(frozen=True)
class Setting:
    """encode: image and value of the dial → (file or frame as `decode` takes it, bytes that would be sent)."""

    codec: str
    name: str
    values: tuple[float, ...]
    encode: Callable[[Image.Image, float], tuple[bytes, int]]
    decode: Callable[[bytes, tuple[int, int], float], np.ndarray]


def av1(speed: int, tune: str = "iq", chroma: str = "4:2:0") -> Setting:
    def encode(image: Image.Image, quality: float) -> tuple[bytes, int]:
        form = bare_av1.form_of(*image.size, chroma=chroma, speed=speed, tune=tune)
        bare = bare_av1.encode(image, form, quality=int(quality), speed=speed, tune=tune)
        return bare, len(bare)

    def decode(bare: bytes, size: tuple[int, int], quality: float) -> np.ndarray:
        return bare_av1.decode(bare, bare_av1.form_of(*size, chroma=chroma, speed=speed, tune=tune))

    return Setting("av1", f"speed {speed}, tune {tune}, {chroma}", (10, 20, 35, 50), encode, decode)


def _pillow_file(image: Image.Image, image_format: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


def _open(file: bytes, size: tuple[int, int], value: float) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


JPEG_VALUES = (5, 10, 20, 35)


def jpeg(name: str, fixed_tables: bool, **settings: object) -> Setting:
    def encode(image: Image.Image, quality: float) -> tuple[bytes, int]:
        file = _pillow_file(image, "JPEG", quality=int(quality), subsampling="4:2:0", **settings)
        form = Form(*image.size, quality)
        return file, len(bare_jpeg.strip(file, form)) if fixed_tables else len(file) - _constant(file)

    return Setting("jpeg", name, JPEG_VALUES, encode, _open)


def _constant(file: bytes) -> int:
    """Bytes of a JPEG file that a receiver could know: all but Huffman tables, scan headers and scans."""
    at, known = 2, 4  # start and end of image
    while file[at + 1] not in (0xC4, 0xDA):
        size = 2 + int.from_bytes(file[at + 2 : at + 4], "big")
        known, at = known + size, at + size
    return known


def webp(name: str, **settings: object) -> Setting:
    def encode(image: Image.Image, quality: float) -> tuple[bytes, int]:
        file = _pillow_file(image, "WEBP", quality=int(quality), **settings)
        return file, len(bare_webp.strip(file, Form(*image.size, quality)))

    return Setting("webp", name, (0, 10, 30, 55), encode, _open)


def jxl(effort: int) -> Setting:
    def encode(image: Image.Image, distance: float) -> tuple[bytes, int]:
        pixels = np.asarray(image)
        file = imagecodecs.jpegxl_encode(pixels, distance=distance, effort=effort, usecontainer=False, numthreads=1)
        return file, len(bare_jxl.strip(file, Form(*image.size, distance)))

    def decode(file: bytes, size: tuple[int, int], distance: float) -> np.ndarray:
        return imagecodecs.jpegxl_decode(file, numthreads=1)

    return Setting("jxl", f"effort {effort}", (12, 7, 4, 2), encode, decode)


SETTINGS = [
    *(av1(speed) for speed in (6, 8, 10, 4, 2)),
    *(av1(speed, "ssim") for speed in (6, 4)),
    *(av1(speed, chroma="4:4:4") for speed in (6, 4)),
    jpeg("baseline, tables of annex K", True),
    jpeg("baseline, optimised tables sent", False, optimize=True),
    jpeg("progressive, optimised tables sent", False, progressive=True),
    *(webp(f"method {method}", method=method) for method in (6, 4)),
    webp("method 6, sharp YUV", method=6, use_sharp_yuv=True),
    *(jxl(effort) for effort in (7, 4, 9)),
    av1(0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="training photographs")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--codecs", default="av1,jpeg,webp,jxl")
    parser.add_argument("--settings", metavar="A,B", help="of each codec its first, and those whose names hold A or B")
    parser.add_argument("--json", help="also write every figure here")
    args = parser.parse_args()
    data, judge = load_dataset(args.data, args.images, 0), load_network("mobilenet-v2")
    views = [canonical_view(open_image(data.read(item), item.name), VIEW, VIEW) for item in data.items]
    own = np.array(judge.answers(views))
    found: dict[str, list[dict]] = {}
    wanted = chosen(args.codecs.split(","), args.settings.split(",") if args.settings else [""])
    for setting in tqdm(wanted, unit="setting"):
        row = measured(setting, views, own, judge.answers)
        row["saving"] = {
            measure: _saving(row["points"], found.setdefault(setting.codec, [row])[0]["points"], measure)
            for measure in ("psnr_db", "agreement")
        }
        if row is not found[setting.codec][0]:
            found[setting.codec].append(row)
        at, against = row["ms"], row["saving"]
        tqdm.write(
            f"| {setting.codec} | {setting.name} | {at:.1f} | {_percent(against['psnr_db'])} | "
            f"{_percent(against['agreement'])} |"
        )
        if args.json:
            document = {"data": data.name, "sha256": data.sha256, "n": len(views), "codecs": found}
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)


def chosen(codecs: list[str], parts: list[str]) -> list[Setting]:
    """Each codec's first setting, which the others are compared with, and those with one of `parts` in their names."""
    first = {setting.codec: setting for setting in reversed(SETTINGS)}
    kept = [each for each in SETTINGS if each is first[each.codec] or any(part in each.name for part in parts)]
    return [setting for setting in kept if setting.codec in codecs]


def measured(
    setting: Setting, views: list[np.ndarray], own: np.ndarray, answers: Callable[[list[np.ndarray]], list[int]]
) -> dict:
    """Points of one setting, and its time at one size."""
    points, times = [], []
    for side in SIDES:
        for value in setting.values:
            sizes, seen = [], []
            for view in views:
                image = Image.fromarray(view).resize((side, side), Image.Resampling.LANCZOS)
                started = time.process_time()
                data, sent = setting.encode(image, value)
                if side == TIMED_SIDE:
                    times.append(1000 * (time.process_time() - started))
                sizes.append(sent)
                seen.append(canonical_view(np.ascontiguousarray(setting.decode(data, image.size, value)), VIEW, VIEW))
            points.append(
                {
                    "side": side,
                    "value": value,
                    "bytes": float(np.mean(sizes)),
                    "psnr_db": float(np.mean([psnr_db(view, each) for view, each in zip(views, seen)])),
                    "agreement": float(np.mean(np.array(answers(seen)) == own)),
                }
            )
    return {"setting": setting.name, "ms": float(np.median(times)), "points": points}


def _saving(points: list[dict], base: list[dict], measure: str) -> float | None:
    curves = [[float(point[name]) for point in of] for of in (points, base) for name in ("bytes", measure)]
    return rate_saving(*curves).saving


def _percent(saving: float | None) -> str:
    return "–" if saving is None else f"{-100 * saving:+.1f} %"


if __name__ == "__main__":
    main()
