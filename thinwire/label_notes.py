"""Labels that a CLIP cannot tell apart: found by their vectors, explained by their texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from thinwire.labels import spoken

SAME = 1e-4  # distance of unit vectors: rounding of one text in two batches is a tenth of it, words differ by far more
NEIGHBOURS = 8  # places along the line of projections in which equal vectors are looked for
SHOWN = 3  # groups that are named
SHOWN_CHARS = 40


def coinciding(classes: np.ndarray) -> np.ndarray:
    """Unit rows (L, D) → int (L,): for each row the first one that is equal to it, itself where none is.

    Equal vectors have equal projections on any line, so only neighbours along one are compared: fast for 20,000 rows.
    """
    count, dim = classes.shape
    first = np.arange(count)
    along = np.random.default_rng(0).normal(size=dim).astype(np.float32)
    order = np.argsort(classes @ (along / np.linalg.norm(along)), kind="stable")
    for step in range(1, min(NEIGHBOURS, count - 1) + 1):
        left, right = order[:-step], order[step:]
        near = np.linalg.norm(classes[left] - classes[right], axis=1) < SAME
        for one, other in zip(left[near], right[near], strict=True):
            roots = sorted((_root(first, one), _root(first, other)))
            first[roots[1]] = roots[0]
    return np.array([_root(first, row) for row in range(count)], np.int64)


def _root(first: np.ndarray, row: int) -> int:
    while first[row] != row:
        row = first[row]
    return int(row)


def label_notes(labels: Sequence[str], first: np.ndarray, context_length: int | None = None) -> tuple[str, ...]:
    """Sentences for whoever chose `labels`; `first` as `coinciding` gives it."""
    groups: dict[int, list[int]] = {}
    for place, root in enumerate(first.tolist()):
        groups.setdefault(root, []).append(place)
    alike = [[labels[place] for place in places] for places in groups.values() if len(places) > 1]
    notes = [
        f"{_shown(group)} are one label to this CLIP and count as the first ({_why(group, context_length)})"
        for group in alike[:SHOWN]
    ]
    if len(alike) > SHOWN:
        notes.append(f"{len(alike) - SHOWN} more groups of labels are one label each to this CLIP")
    if len(groups) == 1:
        notes.append("one label alone always gets 100 %: add what else the picture may show, or go by its similarity")
    return tuple(notes)


def _why(group: Sequence[str], context_length: int | None) -> str:
    plain = [unicodedata.normalize("NFC", " ".join(label.split())) for label in group]
    if len(set(plain)) == 1:
        return "they differ in how accents or spaces are written"
    if len({spoken(text) for text in plain}) == 1:
        return "they differ in quotation marks or underscores, which are not spoken"
    if len({text.casefold() for text in plain}) == 1:
        return "they differ in upper and lower case"
    start = next((at for at, chars in enumerate(zip(*plain, strict=False)) if len(set(chars)) > 1), 0)
    if start > 60:
        read = f"the first {context_length} tokens of a text" if context_length else "the beginning of a text"
        return f"it reads {read}, and they differ later: put what tells them apart first"
    return "its text tower gives them the same vector"


def _shown(group: Sequence[str]) -> str:
    names = [repr(each if len(each) <= SHOWN_CHARS else each[: SHOWN_CHARS - 1] + "…") for each in group[:4]]
    more = f" and {len(group) - 4} more" if len(group) > 4 else ""
    return ", ".join(names) + more
