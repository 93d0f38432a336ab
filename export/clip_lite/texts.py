"""Text side of the training set: nouns, prompts, glosses and captions with MiniLM's vectors, computed once."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from export.clip_lite.wordnet import is_physical, label_graph, nouns
from export.photographs.collection import Photographs
from export.teachers import MiniLM, cache_root
from thinwire.prompts import PROMPT_SETS


@dataclass(frozen=True)
class Corpus:
    """texts and their MiniLM vectors (N, 384) float32, unit length."""

    texts: list[str]
    vectors: np.ndarray


OBJECT_LIST = re.compile(r"a photo of ((?:an? )?[\w ]+(?:, [\w ]+)* and [\w ]+|an? [\w ]+|[\w ]+)")
LIST_PHRASES = ("{}", "a photo of {}", "a picture with {}", "there is {}", "{} in one picture")
LIST_ORDERS = 4


def captions(photographs: Photographs) -> list[list[str]]:
    """The captions of each photograph; a lone list of objects is said in several orders and phrasings."""
    return [list(own) if len(own) != 1 else object_captions(own[0]) for own in photographs.captions()]


def object_captions(caption: str) -> list[str]:
    """`a photo of a dog and a couch` → `a couch and a dog`, `a picture with a dog, a couch`, ...; others alone."""
    found = OBJECT_LIST.fullmatch(caption)
    if not found:
        return [caption]
    things = re.split(r", | and ", found[1])
    rng = random.Random(caption)
    said = [caption]
    for phrase in LIST_PHRASES[:LIST_ORDERS] if len(things) > 1 else LIST_PHRASES[:2]:
        order = rng.sample(things, len(things))
        listed = " and ".join([", ".join(order[:-1]), order[-1]] if len(order) > 1 else order)
        joined = rng.choice((", ".join(order), listed))
        said.append(phrase.format(joined))
    return list(dict.fromkeys(said))


def corpus_texts(photographs: Photographs, seed: int = 0) -> list[str]:
    """Captions, names of things bare and inside prompts, some by their gloss, some abstract nouns; in a fixed order."""
    rng = random.Random(seed)
    prompts = PROMPT_SETS["80"]
    synsets = nouns()
    physical = is_physical(synsets)
    texts = {text for group in captions(photographs) for text in group}
    for offset, synset in synsets.items():
        common = [lemma for lemma in synset.lemmas if not lemma[0].isupper() and not lemma[0].isdigit()]
        if not physical[offset] or not common:
            texts.update(lemma for lemma in common[:1] if rng.random() < 0.3)
            continue
        texts.update(common)
        texts.add(rng.choice(prompts).format(rng.choice(common)))
        if len(synset.gloss) < 80 and rng.random() < 0.3:
            texts.add(f"{common[0]}, {synset.gloss}")
    for names in label_graph(synsets).names:
        for name in names:
            texts.update(template.format(name) for template in rng.sample(prompts, 3))
            texts.update(template.format(name) for template in PROMPT_SETS["7"])
    return sorted(texts)


def encode_cached(name: str, texts: list[str]) -> Corpus:
    """MiniLM vectors of `texts`, kept in the export cache under `name`."""
    folder = cache_root() / "clip-lite"
    folder.mkdir(exist_ok=True)
    listing, vectors = folder / f"{name}.json", folder / f"{name}.npy"
    if not (listing.exists() and json.loads(listing.read_text()) == texts):
        with tqdm(total=len(texts), desc=f"MiniLM vectors: {name}") as bar:
            np.save(vectors, MiniLM().encode(texts, progress=bar.update).astype(np.float16))
        listing.write_text(json.dumps(texts))
    return Corpus(texts, np.load(vectors).astype(np.float32))
