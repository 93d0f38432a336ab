"""Label lists that clients registered once and then name by a handle."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cloud.errors import UnknownLabelSet
from thinwire import labels as label_rules

HANDLE_CHARS = 32  # 128 bits of a SHA-256


@dataclass(frozen=True)
class LabelSet:
    """labels as `thinwire.labels` cleans them; places[i]: where label i stood in the list that was sent."""

    labels: tuple[str, ...]
    places: tuple[int, ...]
    templates: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """About how much memory it holds."""
        return sum(120 + 2 * len(text) for text in (*self.labels, *self.templates))


@lru_cache(maxsize=8)
def checked_labels(labels: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Labels as `thinwire.labels` cleans them, with the place of each in the request (cleaning drops repeats)."""
    clean = label_rules.validate_labels(labels)
    places: dict[str, int] = {}
    for place, label in enumerate(labels):
        places.setdefault(label.strip(), place)
    return clean, tuple(places[label] for label in clean)


def check_label_set(labels: Sequence[str], prompt_set: str, templates: Sequence[str]) -> LabelSet:
    """What a request carries → checked. Raises `LabelError`."""
    return LabelSet(*checked_labels(tuple(labels)), label_rules.resolve_templates(prompt_set, templates))


class LabelSets:
    """Registered sets by handle: the least recently used go when there are too many, or they are too large together.

    A handle is a hash of what was registered, so it is the same on every server and after every restart, and the same
    labels are kept once, whichever client registers them. Thread-safe.
    """

    def __init__(self, max_sets: int, max_bytes: int) -> None:
        self._max_sets, self._max_bytes = max_sets, max_bytes
        self._sets: OrderedDict[str, LabelSet] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sets)

    def add(self, labels: LabelSet) -> str:
        """Keeps `labels` and returns their handle."""
        text = json.dumps([labels.labels, labels.places, labels.templates], ensure_ascii=False)
        handle = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HANDLE_CHARS]
        with self._lock:
            if handle not in self._sets:
                self._sets[handle] = labels
                self._held_bytes += labels.nbytes
            self._sets.move_to_end(handle)
            while len(self._sets) > self._max_sets or (self._held_bytes > self._max_bytes and len(self._sets) > 1):
                self._held_bytes -= self._sets.popitem(last=False)[1].nbytes
        return handle

    def get(self, handle: str) -> LabelSet:
        """Raises `UnknownLabelSet`."""
        with self._lock:
            if handle not in self._sets:
                raise UnknownLabelSet(
                    f"label set {handle[:HANDLE_CHARS]!r} is not known here, or no longer: register its labels again "
                    "with RegisterLabels, or send them with the request"
                )
            self._sets.move_to_end(handle)
            return self._sets[handle]
