"""A tuned decoder on a real server: its CLIP gets other answers, every other CLIP the same; and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from cloud.cli import main
from cloud.engine.items import EngineLimits
from cloud.errors import CannotDecode
from cloud.front.server import background_server
from cloud.networks.assemble import open_engine
from cloud.networks.clip import load_clip
from synthesis.merging import variant_net
from synthesis.variant import CARD, WEIGHTS, load_variant
from tests.cloud.random_variant import random_variant
from tests.cloud.test_adapted import similarities
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import SHAPE, write_tiny_codec
from thinwire.errors import DecoderError


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "deep", layers=3)


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_clip(str(clip_folder))


@pytest.fixture(scope="module", params=["pixels", "tower"])
def variant(request, tiny_codec, clip, tmp_path_factory):
    return random_variant(tmp_path_factory.mktemp(request.param) / "decoder", tiny_codec, clip, request.param)


def opened(clips, codec, variants=(), **kwargs):
    folders = [each.path for each in variants]
    return open_engine(
        [str(each) for each in clips], [codec.path], "cpu", 1, EngineLimits(queue_items=64), decoders=folders, **kwargs
    )


def test_its_clip_gets_other_answers_and_every_other_clip_the_same(
    clip_folder, tiny_clip_dir, tiny_codec, variant, make_packet, tmp_path
):
    packet, told = make_packet(3, 2), []
    for variants in ((), (variant,)):
        with background_server(opened([clip_folder], tiny_codec, variants, cache_dir=tmp_path)) as address:
            told.append(similarities(address, packet))
    plain, tuned = told
    assert max(abs(plain[label] - tuned[label]) for label in plain) > 1e-3
    with opened([tiny_clip_dir], tiny_codec, cache_dir=tmp_path) as engine:
        wanted = engine.submit(packet=packet).result(60).embedding
    with opened([clip_folder, tiny_clip_dir], tiny_codec, (variant,), cache_dir=tmp_path) as engine:
        got = engine.submit(packet=packet, clip=tiny_clip_dir.name).result(60).embedding
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_it_serves_a_clip_that_is_not_the_first(clip_folder, tiny_clip_dir, tiny_codec, variant, make_packet, tmp_path):
    with opened([clip_folder], tiny_codec, (variant,), cache_dir=tmp_path) as engine:
        wanted = engine.submit(packet=make_packet(3, 2)).result(60).embedding
    with opened([tiny_clip_dir, clip_folder], tiny_codec, (variant,), cache_dir=tmp_path) as engine:
        got = engine.submit(packet=make_packet(3, 2), clip=clip_folder.name).result(60).embedding
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_neck_answers_as_the_tower_does_with_what_it_gives_the_entry(clip, tiny_codec, tmp_path):
    """The whole tower, its entry given the neck's features by a hook: the same vectors as without the early blocks."""
    made = random_variant(tmp_path / "neck", tiny_codec, clip, "tower")
    net = variant_net(made, clip.model.visual, clip.image_height, clip.image_width)
    symbols, counts = torch.randn(2, *SHAPE), torch.tensor([1, 2])
    block = clip.model.visual.get_submodule(made.entry["module"])
    features = net.neck(symbols, counts).transpose(1, 2)
    hook = block.register_forward_pre_hook(lambda _, args: (features, *args[1:]))
    with torch.inference_mode():
        wanted = clip.encode_images(torch.rand(2, 3, clip.image_height, clip.image_width))
        hook.remove()
        torch.testing.assert_close(net(symbols, counts), wanted, atol=1e-5, rtol=1e-4)
    assert sum(1 for each in net.rest.visual.parameters()) < sum(1 for each in clip.model.visual.parameters())


def test_a_reload_takes_the_new_weights_and_refuses_altered_ones(clip_folder, clip, tiny_codec, make_packet, tmp_path):
    mine = random_variant(tmp_path / "mine", tiny_codec, clip, "pixels")
    with opened([clip_folder], tiny_codec, (mine,), cache_dir=tmp_path) as engine:
        first = engine.submit(packet=make_packet(0, 1)).result(60).embedding
        held = engine.model_cache.held_bytes
        random_variant(tmp_path / "mine", tiny_codec, clip, "pixels", seed=9)
        engine.reload()
        second = engine.submit(packet=make_packet(0, 1)).result(60).embedding
        assert not np.allclose(first, second, atol=1e-3)
        assert engine.model_cache.held_bytes == held
        (tmp_path / "mine" / WEIGHTS).write_bytes(b"")
        with pytest.raises(DecoderError, match="is not the file"):
            engine.reload()
        np.testing.assert_allclose(engine.submit(packet=make_packet(0, 1)).result(60).embedding, second, atol=1e-5)


def test_what_does_not_fit_is_refused_at_start(clip_folder, tiny_clip_dir, tiny_codec, variant, tmp_path):
    with pytest.raises(DecoderError, match=r"was tuned for CLIP deep#.*, this is tiny-random-clip#"):
        opened([tiny_clip_dir], tiny_codec, (variant,))
    with pytest.raises(DecoderError, match=r"is for bundle 'tiny-codec'.*this server has another"):
        opened([clip_folder], write_tiny_codec(tmp_path / "another", seed=3), (variant,))
    twin = dataclasses.replace(variant, path=shutil.copytree(variant.path, tmp_path / "twin"))
    with pytest.raises(DecoderError, match="are both for tiny-codec"):
        opened([clip_folder], tiny_codec, (variant, twin))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"into": "air"},
        {"clip": "deep"},
        {"entry": 3},
        {"bundle": {"name": "x"}},
        {"synthesis": {"arch": "pixels"}},
        {"synthesis": {"arch": "conjured"}},
    ],
)
def test_a_card_of_another_kind_is_refused_by_name(clip, variant, tmp_path, change):
    folder = shutil.copytree(variant.path, tmp_path / "copy")
    card = json.loads((folder / CARD).read_text()) | change
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(DecoderError, match="copy"):
        variant_net(load_variant(folder), clip.model.visual, clip.image_height, clip.image_width)


def test_the_command_line_says_it_once_and_clearly(clip_folder, tiny_codec, variant, tmp_path, capsys):
    flags = ["--clip", str(clip_folder), "--bundle", str(tiny_codec.path)]
    assert main(["check-config", *flags, "--decoder", str(variant.path)]) == 0
    assert f"# decoder of tiny-codec for {variant.clip}, into {variant.into}" in capsys.readouterr().out
    assert main(["serve", "--port", "0", *flags, "--decoder", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert "thinwire-export tune" in said
    assert "Traceback" not in said


def test_a_neck_makes_no_picture_and_says_so(clip_folder, clip, tiny_codec, make_packet, tmp_path):
    neck = random_variant(tmp_path / "neck", tiny_codec, clip, "tower")
    with opened([clip_folder], tiny_codec, (neck,), cache_dir=tmp_path) as engine:
        prepared = engine.intake.prepare(make_packet(0, 1), None)
        attached = engine.models.attach(engine.models.clip_of(engine.models.default), prepared)
        with pytest.raises(CannotDecode, match="there is no picture"):
            engine._runner.picture(attached)
