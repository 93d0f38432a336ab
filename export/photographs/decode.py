"""One stored picture → one square view. Runs in worker processes, so it imports little."""

from __future__ import annotations

import numpy as np

from thinwire.errors import ImageError
from thinwire.imaging import canonical_view, open_image

Place = tuple[str, int, int, str]
"""file, offset, bytes (-1: to its end), what errors call it"""


def stored_bytes(place: Place) -> bytes:
    """Raises OSError when the file cannot be read."""
    file, offset, size, _ = place
    with open(file, "rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def decode(place: Place, side: int) -> np.ndarray | str:
    """The centre square of a picture as uint8 (side, side, 3), or what is wrong with it."""
    try:
        return canonical_view(open_image(stored_bytes(place), place[3]), side, side)
    except OSError as error:
        return f"{place[3]}: cannot be read ({error.strerror or error})"
    except ImageError as error:
        return str(error)
