"""Image files of the kinds that cameras, scanners and the web leave behind, made from one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny_bundle import photo, synthetic_views

ORIENTATION = 0x0112


def picture(width: int = 96, height: int = 80, seed: int = 3) -> Image.Image:
    side = max(width, height)
    return Image.fromarray(synthetic_views(1, side, seed)[0]).crop((0, 0, width, height))


def good_images(folder: Path) -> list[Path]:
    """One readable file of each odd kind."""
    rgb = picture()
    made = {
        "plain.jpg": rgb,
        "cmyk.jpg": rgb.convert("CMYK"),
        "grey.png": rgb.convert("L"),
        "palette.png": rgb.convert("P"),
        "rgba.png": _half_transparent(rgb),
        "deep.png": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
        "deep.tif": Image.fromarray(np.asarray(rgb.convert("L")).astype(np.float32) / 255),
        "modern.webp": rgb,
    }
    for name, image in made.items():
        image.save(folder / name)
    frames = [picture(seed=seed) for seed in (3, 4, 5)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:], duration=50)
    rotated = folder / "rotated.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(rotated, exif=exif, quality=95)
    return [*(folder / name for name in made), folder / "animated.gif", rotated]


def bad_images(folder: Path) -> list[Path]:
    """Files with an image's name that are none."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("these are words")
    whole = photo(folder, "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return [folder / name for name in ("empty.jpg", "text.png", "cut.jpg", "dangling.png")]


def _half_transparent(rgb: Image.Image) -> Image.Image:
    rgba = rgb.convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, rgb.width).astype(np.uint8), (rgb.height, 1))
    rgba.putalpha(Image.fromarray(alpha))
    return rgba
