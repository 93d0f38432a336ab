"""Teachers of every kind: what they are asked at, where they are tapped, and a few steps of training under several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from export.families import FAMILIES
from export.taps import find_entry, find_taps
from export.teacher import Teacher, load_teachers
from export.towers import load_tower
from export.train import TeacherError, Trainer
from tests.export.tiny_towers import NAMES, write_tiny
from thinwire.errors import ClipUnavailable


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {name: write_tiny(name, root / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_of_any_kind_gives_two_depths_and_its_own_vector(towers, name):
    tower = load_tower(str(towers[name]))
    teacher = Teacher(tower)
    x = torch.randn(2, 3, tower.height, tower.width)
    teacher.free_size = False
    seen = teacher(x.requires_grad_())
    assert seen.middle.shape[0] == seen.last.shape[0] == 2
    assert seen.middle.ndim == seen.last.ndim >= 3
    cosine = F.cosine_similarity(teacher.embedding(seen), tower.net(x), dim=1)
    assert cosine.min() > 0.97  # bfloat16 inside, random weights
    seen.pooled.sum().backward()
    assert x.grad.abs().max() > 0
    assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_neck_may_join_every_tower_and_loses_nothing_there(towers, name):
    """Given the entry its own features, the rest of the tower answers as the whole: blocks before it do not matter."""
    tower = load_tower(str(towers[name]))
    teacher = Teacher(tower)
    teacher.free_size = False
    entry = find_entry(teacher.net.visual, tower.height, tower.width)
    teacher.join(entry)
    x = torch.randn(2, 3, tower.height, tower.width)
    with torch.no_grad():
        got = teacher.from_entry(teacher.at_entry(x, entry))
        torch.testing.assert_close(got.pooled, teacher(x).pooled, atol=2e-2, rtol=0)


def test_towers_of_clip_lite_are_tapped_where_its_objective_always_was():
    tower = load_tower("clip-lite")
    taps = find_taps(tower.net.visual, tower.height, tower.width)
    assert [tap.module for tap in taps] == ["trunk.blocks.4", "trunk.bn2"]


def test_several_teachers_take_turns(towers, settings):
    specs = (str(towers["ViT"]), str(towers["timm"]))
    trainer = Trainer(FAMILIES["conv"], replace(settings, clips=specs))
    drawn = {trainer.drawn_teacher().id for _ in range(20)}
    assert drawn == {teacher.id for teacher in trainer.teachers}
    trainer.progress = 0.9
    for _ in range(3):
        assert all(value == value for value in trainer.step().values())
    figures = trainer.held_out()
    assert {"feature_1", f"feature_1_{trainer.teachers[1].id}"} <= set(figures)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_tower_teaches_a_codec(towers, settings, name):
    trainer = Trainer(FAMILIES["conv"], replace(settings, clips=(str(towers[name]),)))
    trainer.progress = 0.3
    before = trainer.synthesis.stem.weight.clone()
    assert all(value == value for value in trainer.step().values())
    assert not torch.equal(trainer.synthesis.stem.weight, before)


def test_a_network_of_timm_teaches_by_features_alone(tmp_path, settings):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    spec = f"timm:test_resnet@{tmp_path / 'weights.pth'}"
    (teacher,) = load_teachers([spec])
    assert teacher.answers is None
    assert teacher.id.startswith("timm:test_resnet#")
    trainer = Trainer(FAMILIES["conv"], replace(settings, clips=(spec,)))
    trainer.progress = 0.9
    assert trainer.step()["answer"] == 0.0


def test_a_family_without_pixels_learns_one_clip_of_any_width(towers, settings):
    vit = str(towers["ViT"])
    trainer = Trainer(FAMILIES["semantic"], replace(settings, crop=96, clips=(vit,)))
    assert trainer.family.synthesis_spec["dim"] == 32
    trainer.progress = 0.3
    assert all(value == value for value in trainer.step().values())
    with pytest.raises(TeacherError, match="one CLIP's space"):
        Trainer(FAMILIES["semantic"], replace(settings, clips=(vit, str(towers["RN50"]))))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("timm:no_such_network", "timm.list_models"),
        ("timm:test_resnet@/nowhere.pth", "no checkpoint"),
        ("no-such-clip", "no such file or folder"),
        ("NoSuchNet:tag", "knows no model"),
        ("ViT-B-32:no-such-tag", "no weights tagged"),
    ],
)
def test_what_cannot_be_had_is_one_line_that_names_the_fix(spec, said):
    with pytest.raises(ClipUnavailable, match=said):
        load_tower(spec)
