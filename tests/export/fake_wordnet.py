"""A `data.noun` of WordNet's format with ImageNet's 1000 classes, small enough to know every answer by hand.

entity ─ physical entity ─┬─ creature: classes 0..299
                          │    └─ lone genus: class 0 alone
                          └─ artefact: classes 300..999
       └─ abstraction: a second parent of class 1
"""

from __future__ import annotations

from pathlib import Path

from timm.data import ImageNetInfo

LICENCE = "  1 This software and database is being provided to you, the LICENSEE,\n  2 by Nobody.  \n"
ENTITY, PHYSICAL, ABSTRACTION, CREATURE, ARTEFACT, LONE = 1740, 1930, 2137, 3000, 4000, 5000
INSTANCE = 6000
CLASSES = tuple(int(name[1:]) for name in ImageNetInfo("imagenet-1k").label_names())


def record(offset: int, lemmas: list[str], pointers: list[tuple[str, int]], gloss: str) -> str:
    words = " ".join(f"{lemma.replace(' ', '_')} 0" for lemma in lemmas)
    links = "".join(f"{symbol} {target:08d} n 0000 " for symbol, target in pointers)
    return f"{offset:08d} 03 n {len(lemmas):02x} {words} {len(pointers):03d} {links}| {gloss}  \n"


def write_wordnet(folder: Path) -> Path:
    lines = [
        record(ENTITY, ["entity"], [("~", PHYSICAL), ("~", ABSTRACTION)], "that which exists"),
        record(PHYSICAL, ["physical entity"], [("@", ENTITY)], "an entity that has physical existence"),
        record(ABSTRACTION, ["abstraction"], [("@", ENTITY)], "a general concept"),
        record(CREATURE, ["creature", "living thing"], [("@", PHYSICAL), ("~", LONE)], 'it lives; "a shy creature"'),
        record(ARTEFACT, ["artefact"], [("@", PHYSICAL), ("#p", CREATURE)], "a man-made object | or part of one"),
        record(LONE, ["lone genus"], [("@", CREATURE)], "a genus with one species"),
        record(INSTANCE, ["Wall-E"], [("@i", ARTEFACT)], "a robot"),
    ]
    for index, offset in enumerate(CLASSES):
        parents = [("@", LONE if index == 0 else CREATURE if index < 300 else ARTEFACT)]
        parents += [("@", ABSTRACTION)] if index == 1 else []
        lemmas = [f"class {index}"] + [f"alias {index} {k}" for k in range(index % 12)]  # up to 0c words in hexadecimal
        lines.append(record(offset, lemmas, parents, f"the class of number {index}"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.noun").write_text(LICENCE + "".join(lines), "utf-8")
    (folder / "noun.exc").write_text("mice mouse\nmen man\nleaves leaf leave\n", "utf-8")
    return folder
