from __future__ import annotations

import numpy as np
import pytest
import torch

from export.clip_lite.align import load_label_sets, node_prompts
from export.clip_lite.wordnet import Synset, ancestors, is_physical, label_graph, nouns
from export.teachers import TeacherMissing
from tests.export import fake_wordnet as fake
from thinwire.prompts import PROMPT_SETS


@pytest.fixture(autouse=True)
def wordnet(tmp_path_factory, monkeypatch):
    folder = fake.write_wordnet(tmp_path_factory.mktemp("wordnet"))
    monkeypatch.setenv("THINWIRE_WORDNET", str(folder))
    return folder


def test_every_synset_is_read_whole():
    """Word counts are hexadecimal; only `@` and `@i` point upwards; a gloss ends before its first example."""
    synsets = nouns()
    assert len(synsets) == 1000 + 7
    assert synsets[fake.CREATURE] == Synset(
        fake.CREATURE, ("creature", "living thing"), "it lives", parents=(fake.PHYSICAL,)
    )
    assert synsets[fake.ARTEFACT] == Synset(
        fake.ARTEFACT, ("artefact",), "a man-made object | or part of one", parents=(fake.PHYSICAL,)
    )
    assert synsets[fake.INSTANCE].parents == (fake.ARTEFACT,)
    assert synsets[fake.ENTITY].parents == ()
    assert len(synsets[fake.CLASSES[11]].lemmas) == 12
    assert synsets[fake.CLASSES[11]].lemmas[-1] == "alias 11 10"
    assert synsets[fake.CLASSES[1]].parents == (fake.CREATURE, fake.ABSTRACTION)


def test_a_missing_file_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("THINWIRE_WORDNET", str(tmp_path / "none"))
    with pytest.raises(TeacherMissing, match="apt-get install wordnet-base"):
        nouns()


def test_ancestors_follow_every_parent():
    synsets = nouns()
    assert ancestors(synsets, fake.CLASSES[1]) == {
        fake.CLASSES[1],
        fake.CREATURE,
        fake.PHYSICAL,
        fake.ABSTRACTION,
        fake.ENTITY,
    }
    assert ancestors(synsets, fake.ENTITY) == {fake.ENTITY}


def test_only_what_lies_under_physical_entity_can_be_seen():
    physical = is_physical(nouns())
    assert physical[fake.CREATURE]
    assert physical[fake.INSTANCE]
    assert physical[fake.CLASSES[1]]  # one physical parent is enough
    assert not physical[fake.ABSTRACTION]
    assert not physical[fake.ENTITY]


def test_the_label_graph_holds_leaves_and_physical_nodes_of_at_most_400_classes():
    graph = label_graph(nouns())
    assert set(graph.nodes) == {*fake.CLASSES, fake.CREATURE, fake.LONE}  # artefact has 700, abstraction is no thing
    assert (graph.member.shape, graph.member.dtype) == ((1002, 1000), np.float32)
    creature = graph.nodes.index(fake.CREATURE)
    assert graph.names[creature] == ("creature", "living thing")
    np.testing.assert_array_equal(np.flatnonzero(graph.member[creature]), np.arange(300))
    for index in (0, 1, 999):
        row = graph.member[graph.nodes.index(fake.CLASSES[index])]
        np.testing.assert_array_equal(np.flatnonzero(row), [index])


def test_each_class_has_its_leaf():
    sets = load_label_sets()
    assert torch.equal(sets.member[sets.siblings[1:]], torch.eye(1000)[1:])
    assert [sets.names[node][0] for node in sets.siblings[1:]] == [f"class {index}" for index in range(1, 1000)]


def test_a_class_alone_under_its_parent_keeps_its_own_name():
    """In WordNet 3.0 this made 'owl' of the great grey owl, and so on for 153 classes of 1000."""
    sets = load_label_sets()
    assert sets.names[sets.siblings[0]] == ("class 0",)


def test_a_label_set_never_counts_a_class_twice():
    sets = load_label_sets()
    for seed in range(5):
        nodes = sets.sample(50, torch.Generator().manual_seed(seed))
        assert len(nodes) == len(set(nodes.tolist())) == 50
        assert sets.member[nodes].sum(0).max() == 1
    first, again = (sets.sample(20, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)


def test_prompts_of_a_node_lie_together_and_use_at_most_four_names():
    sets = load_label_sets()
    texts, owner = node_prompts(sets)
    assert len(texts) == len(owner)
    assert torch.equal(owner, owner.sort().values)
    node = int(sets.siblings[11])
    mine = [text for text, index in zip(texts, owner.tolist()) if index == node]
    assert len(mine) == 4 * (1 + len(PROMPT_SETS["7"]))
    assert mine[0] == "class 11"
