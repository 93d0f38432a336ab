"""Class names of the training photographs: what each means in WordNet, which exclude each other, which are held out.

A fifth of the names that only the later sources have is never trained on: how well the names of things that nobody
trained are answered is measured there, and recipes are chosen there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from export.clip_lite.wordnet import Synset, ancestors, is_physical, label_graph, nouns
from export.photographs.collection import Photographs
from thinwire.prompts import PROMPT_SETS

HELD_OUT = 5  # one of so many new names
SPARE = 10  # one of so many photographs of the trained names
LEXICAL_MASS = (
    0.15  # of the softmax: what a sense of the name must have, so that `mouse` beside a keyboard is no rodent
)
EVIDENT_MASS = 0.7  # under which node a name lies that WordNet lacks (`Acura Integra Type R 2001`)
TYPE_TEMPLATES = ("a photo of a {}, a type of {}.", "{}, a kind of {}")


@dataclass(frozen=True)
class Classes:
    """names (C,); of_image (N,): index of each photograph's name, -1 without; held (C,): never trained on;
    spare (N,): photographs of trained names that are kept out; sense (C,): WordNet offset, -1 unknown;
    node (C,): deepest node of the label graph above the sense, -1 unknown; related (C, C): neither excludes the other.
    """

    names: list[str]
    of_image: torch.Tensor
    held: torch.Tensor
    spare: torch.Tensor
    sense: list[int]
    node: torch.Tensor
    related: torch.Tensor

    def trained_images(self) -> torch.Tensor:
        """(N,) bool: photographs that may be trained on at all."""
        named = self.of_image >= 0
        held = torch.zeros_like(named)
        held[named] = self.held[self.of_image[named]]
        return ~(held | self.spare)


def hold_out(names: list[str], sources_of_name: dict[str, set[int]], step: int = HELD_OUT) -> np.ndarray:
    """(C,) bool: by the hash of the name, one of `step` names that the first source lacks; 0 holds none out."""
    if not step:
        return np.zeros(len(names), bool)
    digest = [int(hashlib.sha256(name.lower().encode()).hexdigest()[:8], 16) for name in names]
    return np.array([value % step == 0 and 0 not in sources_of_name[name] for name, value in zip(names, digest)])


def load_classes(photographs: Photographs, probability: torch.Tensor, step: int = HELD_OUT) -> Classes:
    """probability (N, 1000): the backbone's softmax on sharp views, which tells the senses of a name apart."""
    labels, sources = photographs.labels(), photographs.source_numbers()
    names = sorted(set(labels) - {""})
    index = {name: number for number, name in enumerate(names)}
    of_image = torch.tensor([index.get(label, -1) for label in labels], dtype=torch.int64)
    sources_of_name: dict[str, set[int]] = {name: set() for name in names}
    for label, source in zip(labels, sources.tolist()):
        if label:
            sources_of_name[label].add(source)
    held = torch.from_numpy(hold_out(names, sources_of_name, step))
    spare = torch.zeros(len(labels), dtype=torch.bool)
    if step:
        later = torch.from_numpy(sources > 0)
        for name in range(len(names)):
            own = torch.nonzero((of_image == name) & later).flatten()
            spare[own[SPARE // 2 :: SPARE]] = True
    book = Lexicon()
    found = [book.sense(name, probability[of_image == number].float().mean(0)) for name, number in index.items()]
    sense, exact = [each[0] for each in found], [each[1] for each in found]
    node = torch.tensor([book.node_above(each) for each in sense], dtype=torch.int64)
    return Classes(names, of_image, held, spare, sense, node, related_names(book.synsets, sense, exact))


class Lexicon:
    """WordNet beside ImageNet's label graph: what a class name means, judged by what the network sees."""

    def __init__(self) -> None:
        self.synsets = nouns()
        graph = label_graph(self.synsets)
        self.member = torch.from_numpy(graph.member)
        self.row = {offset: row for row, offset in enumerate(graph.nodes)}
        self.size = self.member.sum(1)
        self.offsets = graph.nodes
        physical = is_physical(self.synsets)
        self.lemmas: dict[str, list[int]] = {}
        for offset, synset in self.synsets.items():
            if physical[offset]:
                for lemma in synset.lemmas:
                    self.lemmas.setdefault(lemma.lower(), []).append(offset)

    def node_above(self, offset: int) -> int:
        """Row of the smallest node of the label graph that a synset lies under; -1 without."""
        if offset < 0:
            return -1
        rows = [self.row[each] for each in ancestors(self.synsets, offset) if each in self.row]
        return min(rows, key=lambda row: (float(self.size[row]), row), default=-1)

    def sense(self, name: str, mass: torch.Tensor) -> tuple[int, bool]:
        """(offset, whether the whole name means it) by mean softmax (1000,) over the photographs of `name`.

        The longest ending of the name that WordNet knows, in the sense that the network sees most; else the smallest
        node that holds most of the softmax; (-1, False) where neither is.
        """
        for place, phrase in enumerate(endings(name)):
            senses = {offset for word in singulars(phrase) for offset in self.lemmas.get(word, ())}
            best = max(((self._mass(offset, mass), offset) for offset in senses), default=(0.0, -1))
            if best[0] >= LEXICAL_MASS:
                return best[1], place == 0
        under = self.member @ mass
        rows = torch.nonzero(under >= EVIDENT_MASS).flatten().tolist()
        if not rows:
            return -1, False
        return self.offsets[min(rows, key=lambda row: (float(self.size[row]), row))], False

    def _mass(self, offset: int, mass: torch.Tensor) -> float:
        row = self.node_above(offset)
        return float(self.member[row] @ mass) if row >= 0 else 0.0


def endings(name: str) -> list[str]:
    """`Audi 100 Wagon 1994` → itself, then ever shorter endings in lower case without numbers at the end."""
    words = name.lower().replace("-", " ").split()
    whole = " ".join(name.lower().split())
    while words and not words[-1].isalpha():
        words.pop()
    shorter = [" ".join(words[start:]) for start in range(len(words))]
    return list(dict.fromkeys([whole, *shorter]))


def singulars(phrase: str) -> list[str]:
    """The phrase itself, and what it may be the plural of."""
    found = [phrase]
    for plural, single in (("ies", "y"), ("es", ""), ("s", "")):
        if phrase.endswith(plural) and len(phrase) > len(plural) + 2:
            found.append(phrase[: -len(plural)] + single)
    return found


def related_names(synsets: dict[int, Synset], sense: list[int], exact: list[bool]) -> torch.Tensor:
    """(C, C) bool, symmetric with a true diagonal: one names what the other is a kind of."""
    count = len(sense)
    related = torch.eye(count, dtype=torch.bool)
    means: dict[int, list[int]] = {}
    for name in range(count):
        if exact[name] and sense[name] >= 0:
            means.setdefault(sense[name], []).append(name)
    for name in range(count):
        if sense[name] >= 0:
            for above in ancestors(synsets, sense[name]):
                for other in means.get(above, ()):
                    related[name, other] = related[other, name] = True
    return related


def class_prompts(classes: Classes, node_names: list[tuple[str, ...]]) -> tuple[list[str], torch.Tensor]:
    """Texts of all names, those of a name together, and for each text its name: (texts, (P,))."""
    texts, owner = [], []
    for index, name in enumerate(classes.names):
        own = [template.format(name) for template in ("{}", "a photo of a {}.", *PROMPT_SETS["7"])]
        row = int(classes.node[index])
        if row >= 0 and node_names[row][0].lower() != name.lower():
            own += [template.format(name, node_names[row][0]) for template in TYPE_TEMPLATES]
        texts += own
        owner += [index] * len(own)
    return texts, torch.tensor(owner, dtype=torch.int64)
