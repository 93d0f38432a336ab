"""WordNet 3.0 nouns and ImageNet's 1000 classes inside them: what the softmax says about any noun above them.

Reads Debian's `wordnet-base` (`apt-get install wordnet-base`; `THINWIRE_WORDNET`: another folder with `data.noun`
and `noun.exc`).
ImageNet's ids are WordNet 3.0 offsets (`n01440764` is offset 1440764), so the two join exactly.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from export.teachers import TeacherMissing

PHYSICAL_ENTITY = 1930


@dataclass(frozen=True)
class Synset:
    offset: int
    lemmas: tuple[str, ...]
    gloss: str
    parents: tuple[int, ...]


def wordnet_file(name: str) -> Path:
    """One of WordNet's files. Raises `TeacherMissing` where it is not installed."""
    path = Path(os.environ.get("THINWIRE_WORDNET", "/usr/share/wordnet")) / name
    if not path.exists():
        raise TeacherMissing(f"{path} is missing: run `apt-get install wordnet-base` or set THINWIRE_WORDNET")
    return path


def nouns() -> dict[int, Synset]:
    """All noun synsets by offset. Lemmas have spaces, not underscores."""
    synsets = {}
    for line in wordnet_file("data.noun").read_text("utf-8").splitlines():
        if line.startswith("  "):  # the licence header
            continue
        record, gloss = line.split(" | ", 1)
        fields = record.split()
        count = int(fields[3], 16)
        lemmas = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
        pointers = fields[5 + 2 * count :]
        parents = tuple(int(pointers[i + 1]) for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i"))
        synsets[int(fields[0])] = Synset(int(fields[0]), lemmas, gloss.split("; ")[0].strip(), parents)
    return synsets


def ancestors(synsets: dict[int, Synset], offset: int) -> set[int]:
    """The synset itself and everything above it."""
    seen, stack = set(), [offset]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            stack.extend(synsets[current].parents)
    return seen


@dataclass(frozen=True)
class LabelGraph:
    """nodes: synset offsets that cover ImageNet classes; member float32 (nodes, 1000): 1 where the class lies under the
    node; names: the lemmas by which a person would call each node."""

    nodes: list[int]
    member: np.ndarray
    names: list[tuple[str, ...]]


def leaf_offsets() -> list[int]:
    """The synset of each of the 1000 classes."""
    return [int(name[1:]) for name in ImageNetInfo("imagenet-1k").label_names()]


def label_graph(synsets: dict[int, Synset]) -> LabelGraph:
    """The 1000 leaves and every physical node above them, names cleaned of proper nouns."""
    leaves = leaf_offsets()
    under: dict[int, list[int]] = {}
    for index, leaf in enumerate(leaves):
        for node in ancestors(synsets, leaf):
            if node == leaf or PHYSICAL_ENTITY in ancestors(synsets, node):
                under.setdefault(node, []).append(index)
    nodes = [node for node, members in under.items() if len(members) <= 400]
    member = np.zeros((len(nodes), len(leaves)), np.float32)
    for row, node in enumerate(nodes):
        member[row, under[node]] = 1
    return LabelGraph(nodes, member, [synsets[node].lemmas for node in nodes])


def is_physical(synsets: dict[int, Synset]) -> dict[int, bool]:
    """Whether each synset is a thing that a camera could see (lies under physical entity)."""
    memo: dict[int, bool] = {PHYSICAL_ENTITY: True}

    def visit(offset: int) -> bool:
        if offset not in memo:
            memo[offset] = any(visit(parent) for parent in synsets[offset].parents)
        return memo[offset]

    return {offset: visit(offset) for offset in synsets}
