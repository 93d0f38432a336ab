"""A label as other people write it: in the plural, with an article, in quotation marks.

Regular plurals by rule, irregular ones from WordNet's list of exceptions (`noun.exc`, beside `data.noun`). A plural
that is itself the name of a thing (glasses, arms, boxers) is no other spelling of the singular.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from export.clip_lite.wordnet import Synset, is_physical, wordnet_file
from thinwire.prompts import PROMPT_SETS

INSIDE = re.compile(r" (?:of|in|on|at|with|for|from|to|de) ")  # `cup of coffee`: the word before it is the noun
LONE_S = re.compile(r"(?<![su])s$")  # scissors, trousers; not glass, bus
ALWAYS_SEVERAL = (  # nobody writes their singulars, which WordNet has: `trousers` is no other spelling of `trouser`
    *("dungaree", "jean", "knicker", "legging", "overall", "pajama", "pyjama", "trouser", "tweezer"),
)
NO_MEN = ("human", "german", "roman", "norman", "ottoman", "caiman", "cayman", "shaman", "talisman", "hetman", "saman")
ARTICLES = ("",) * 8 + ("the ", "my ")
SINGULAR_ARTICLES = (*ARTICLES, "a ", "an ")
PLURAL_ARTICLES = (*ARTICLES, "some ", "these ")
MARKS = (("", ""),) * 4 + (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("`", "`"))
PHRASES = (
    ("a photo of {}", "a photo of a {}"),
    ("photos of {}", "photo of a {}"),
    ("pictures of {}", "picture of a {}"),
    ("images of {}", "image of a {}"),
)


def irregular_plurals() -> dict[str, list[str]]:
    """Singular → its irregular plurals, of single words and of compounds with hyphens (`mothers-in-law`)."""
    found: dict[str, list[str]] = {}
    for line in wordnet_file("noun.exc").read_text("utf-8").splitlines():
        plural, *singulars = (word.replace("_", " ") for word in line.split())
        for singular in singulars:
            if ("-" in plural) == ("-" in singular):  # not `box-kodaks box kodak`
                found.setdefault(singular, []).append(plural)
    return found


def regular_plural(word: str) -> str:
    """English's regular plural of a word."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


@dataclass(frozen=True)
class Plurals:
    """irregular: of singulars in small letters; things: lemmas in small letters and the synsets of things that they
    name."""

    irregular: dict[str, list[str]]
    things: dict[str, set[int]]

    @classmethod
    def of_wordnet(cls, synsets: dict[int, Synset]) -> Plurals:
        things: dict[str, set[int]] = {}
        physical = is_physical(synsets)
        for offset, synset in synsets.items():
            if physical[offset]:
                for lemma in synset.lemmas:
                    things.setdefault(lemma.lower(), set()).add(offset)
        return cls(irregular_plurals(), things)

    def of(self, name: str) -> list[str]:
        """What the plural of `name` may be, the likeliest first; none where there is none or it means another thing.

        `cup of coffee` → `cups of coffee`; `mouse` → `mice`, `mouses`; `scissors`, `glass` → nothing.
        """
        place = INSIDE.search(name)
        head, rest = (name[: place.start()], name[place.start() :]) if place and place.start() else (name, "")
        before, _, word = head.rpartition(" ")
        small = word.lower()
        irregular = list(dict.fromkeys(self.irregular.get(small, [])))
        if small.endswith("man") and not irregular and small not in NO_MEN:
            irregular = [word[:-3] + "men"]
        if not small[-1:].isalpha() or small in ALWAYS_SEVERAL or (LONE_S.search(small) and not irregular):
            return []
        regular = [] if LONE_S.search(small) else [regular_plural(word)]
        found = []
        for form in dict.fromkeys([*irregular, *regular]):
            plural = f"{before} {form}".lstrip() + rest
            if form in irregular or not self._is_another_thing(plural, name):
                found.append(plural)
        return found

    def only_several(self, names: list[str]) -> list[str]:
        """Those of `names` that are written in the plural alone (`scissors`), and `trousers` and its like."""
        found = [name for name in names if LONE_S.search(name.lower()) and " " not in name and not self.of(name)]
        return list(dict.fromkeys([*found, *map(regular_plural, ALWAYS_SEVERAL)]))

    def told_apart(self, names: list[str]) -> list[str]:
        """Those of `names` whose regular plural is another thing, and that plural: `glass` and `glasses`."""
        pairs = [(name, regular_plural(name)) for name in names if name[-1:].isalpha() and not self.of(name)]
        return list(dict.fromkeys(word for pair in pairs if self._is_another_thing(pair[1], pair[0]) for word in pair))

    def _is_another_thing(self, plural: str, single: str) -> bool:
        return bool(self.things.get(plural.lower(), set()) - self.things.get(single.lower(), set()))


def spelled(name: str, plurals: Sequence[str], rng: random.Random) -> str:
    """A label as somebody else would write it: with an article, in one of its `plurals`, in quotation marks, or all."""
    several = plurals and rng.random() < 0.5
    said = rng.choice((plurals[0], rng.choice(plurals))) if several else name
    article = rng.choice(PLURAL_ARTICLES if several else SINGULAR_ARTICLES)
    left, right = rng.choice(MARKS)
    return rng.choice((f"{left}{article}{said}{right}", f"{article}{left}{said}{right}"))


def spelling_pairs(
    names: list[str],
    plurals: Plurals,
    variants: int = 2,
    seed: int = 0,
    prompts: tuple[str, ...] = ("{}", "{}", *PROMPT_SETS["80"]),
) -> list[tuple[str, str]]:
    """(as somebody else would write it, as it is in the lists) of every name, inside one of `prompts`."""
    rng = random.Random(seed)
    pairs = []
    for name in names:
        forms = plurals.of(name)
        for _ in range(variants):
            template = rng.choice(prompts)
            other = spelled(name, forms, rng)
            if other != name:
                pairs.append((template.replace("{}", other), template.replace("{}", name)))
    return pairs


def plural_pairs(
    names: list[str], plurals: Plurals, rng: random.Random, prompts: tuple[str, ...], variants: int = 1
) -> list[tuple[str, str]]:
    """(plural, singular) of every name that has a plural, in `variants` of `prompts`; some with an article."""
    pairs = []
    for name in names:
        forms = plurals.of(name)
        for template in rng.sample(prompts, min(variants, len(prompts))) if forms else ():
            form = rng.choice((forms[0], rng.choice(forms)))
            pairs.append((template.replace("{}", rng.choice(PLURAL_ARTICLES) + form), template.replace("{}", name)))
    return pairs


def phrase_pairs(names: list[str], plurals: Plurals, rng: random.Random) -> list[tuple[str, str]]:
    """(`photos of dogs`, `photo of a dog`) and the like, of every name that has a plural; half of them in a prompt."""
    pairs = []
    for name in names:
        if forms := plurals.of(name):
            template = rng.choice(("{}", rng.choice(PROMPT_SETS["7"])))
            several, one = rng.choice(PHRASES)
            pairs.append((template.replace("{}", several.format(forms[0])), template.replace("{}", one.format(name))))
    return pairs
