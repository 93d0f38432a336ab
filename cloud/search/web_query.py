"""The page's search: query string and body → `SearchQuery`."""

from __future__ import annotations

from collections.abc import Mapping

from cloud.errors import InvalidRequest
from cloud.search.frames import Filter, SearchQuery
from thinwire.packet import MAGIC

DEFAULT_FOUND = 24


def question_of(query: Mapping[str, str], body: bytes = b"") -> SearchQuery:
    """text=, like=ID, or an image file or packet as `body`; device=, label=, after= and before= (seconds since 1970,
    fractions allowed), k=, clip=. Raises `InvalidRequest`."""
    wanted = Filter(
        device_ids=(query["device"],) if query.get("device") else (),
        labels=(query["label"],) if query.get("label") else (),
        after_ms=int(1000 * _number(query, "after")),
        before_ms=int(1000 * _number(query, "before")),
    )
    return SearchQuery(
        text=query.get("text") if not body else None,
        packet=body if body.startswith(MAGIC) else None,
        image_file=body if body and not body.startswith(MAGIC) else None,
        like_id=int(_number(query, "like")) if query.get("like") else None,
        filter=wanted,
        top_k=int(_number(query, "k")) or DEFAULT_FOUND,
        clip=query.get("clip", ""),
    )


def _number(query: Mapping[str, str], name: str) -> float:
    text = query.get(name) or "0"
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e14:
        raise InvalidRequest(f"{name}={text!r} is not a number, 0 or more")
    return number
