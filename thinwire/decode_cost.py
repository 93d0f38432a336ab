"""What a picture takes to decode, read from its header: bytes of memory, and the size at which a JPEG is decoded."""

from __future__ import annotations

from PIL import Image

from thinwire import deep_pixels

DRAFT_ABOVE_PIXELS = 16_000_000
"""A larger JPEG is decoded at 1/2, 1/4 or 1/8 when a view is taken of it, as long as the part that the view shows keeps
`DRAFT_OVERSAMPLING` pixels for each of the view's, along each axis. LOG.md tells what that does to packets."""

DRAFT_OVERSAMPLING = 4

Crop = tuple[float, float, float, float]
"""(x, y, width, height) of the upright picture: in pixels, or as shares of it when none is above 1."""

_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # in Pillow; others: 4
# What decoders hold beside Pillow's pixels, bytes a pixel, measured (LOG.md): WebP and AVIF whole RGBA frames, JPEG
# 2000 its samples as 32-bit integers, TIFF a second picture where it is turned
_DECODER_BYTES = {"WEBP": 13, "AVIF": 10, "JPEG2000": 16, "TIFF": 4}


def draft(image: Image.Image, view: tuple[int, int], crop: Crop | None = None) -> bool:
    """Lets an opened, large JPEG be decoded at a part of its size where a view (height, width) of `crop` cannot tell.

    Says whether it did.
    """
    if image.format not in ("JPEG", "MPO"):
        return False
    width, height = image.size
    shown = min(width, height)
    if crop is not None:  # which side is which, only the orientation tells: the smaller bound holds either way
        unit = shown if max(crop) <= 1 else 1
        shown = min(shown, crop[2] * unit, crop[3] * unit)
    scale = 1
    while (
        scale < 8
        and width * height > DRAFT_ABOVE_PIXELS * scale**2
        and shown >= 2 * scale * DRAFT_OVERSAMPLING * max(view)
    ):
        scale *= 2
    if scale == 1:
        return False
    image.info["full_pixels"] = width * height
    image.draft(None, (width // scale, height // scale))
    return True


def decode_bytes(image: Image.Image) -> int:
    """An opened image → about how many bytes its pixels, their copy as RGB and the decoder take."""
    held = _PIXEL_BYTES.get(image.mode, 4) + (0 if image.mode == "RGB" and not image.has_transparency_data else 4)
    held += _DECODER_BYTES.get(image.format or "", 0)
    if deep_pixels.lower_bytes(image) is not None:
        held += 8  # 16-bit colours may have to be decoded twice, and joined
    total = held * image.width * image.height
    if image.info.get("progressive"):  # libjpeg keeps the coefficients (16 bits) of the full size
        shares = [across * down for _, across, down, _ in getattr(image, "layer", ())] or [1, 1, 1]
        total += 2 * image.info.get("full_pixels", image.width * image.height) * sum(shares) // max(shares)
    return total
