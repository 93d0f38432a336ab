"""LoRA on image towers: which layers, a short real run, and that merged weights are what peft computed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from export.adapt import Adapting, AdaptSettings, adapt
from export.adapt_tower import add_lora, factors_of, target_modules
from export.cli import main
from export.towers import load_tower
from export.training_loop import CheckpointError
from synthesis.adapter import CARD, WEIGHTS, load_adapter, write_adapter
from synthesis.merging import adapted_tower
from tests.cloud.tiny_clip import write_tiny_clip
from tests.cloud.tiny_codec import write_tiny_codec
from tests.tiny_bundle import make_tiny_still
from thinwire.bundle import load_bundle
from thinwire.errors import AdapterError


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT of open_clip with random weights."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-vit")


@pytest.fixture(scope="module")
def asked(vit, bundle_folder) -> AdaptSettings:
    rates = tuple(load_bundle(bundle_folder).rates)[:2]
    return AdaptSettings(str(bundle_folder), str(vit), rates, steps=4, count=8, batch=4, rank=2)


@pytest.fixture(scope="module")
def adapted(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    adapt(asked, folder)
    return folder


def with_random_lora(spec: str):
    """A tower, and the same with LoRA whose B is not zero."""
    plain, tower = load_tower(spec), load_tower(spec)
    targets = target_modules(tower.net.visual, tower.height, tower.width)
    tower.net.visual = add_lora(tower.net.visual, targets, rank=4, scale=1.5)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in tower.net.named_parameters():
            if "lora_" in name:
                each.copy_(0.1 * torch.randn(each.shape, generator=generator))
    return plain, tower, targets


def test_pointwise_convolutions_of_small_maps_learn_in_a_convolutional_tower():
    tower = load_tower("clip-lite")
    targets = target_modules(tower.net.visual, 224, 224)
    modules = dict(tower.net.visual.named_modules())
    assert all(isinstance(modules[name], nn.Conv2d) and modules[name].kernel_size == (1, 1) for name in targets)
    assert "trunk.conv_head" in targets
    assert "trunk.blocks.2.0.conv_pwl" in targets
    assert "trunk.blocks.1.0.conv_pw" not in targets  # 112 x 112 positions
    assert not any("conv_dw" in name or "head.mlp" in name for name in targets)


def test_attention_and_mlp_learn_in_a_transformer(vit):
    tower = load_tower(str(vit))
    block = "transformer.resblocks.0"
    assert set(target_modules(tower.net.visual, 64, 64)) == {
        f"{block}.attn",
        f"{block}.mlp.c_fc",
        f"{block}.mlp.c_proj",
    }


@pytest.mark.parametrize("kind", ["clip-lite", "vit"])
def test_merged_weights_give_what_peft_gives(kind, vit, bundle_folder, tmp_path):
    plain, student, targets = with_random_lora(str(vit) if kind == "vit" else kind)
    factors = factors_of(student.net.visual)
    assert len(factors) == len(targets) + (kind == "vit")  # attention has two weights: in and out
    bundle = load_bundle(bundle_folder)
    adapter = write_adapter(
        tmp_path / "a", clip=plain.id, bundle=bundle, rates={"low": 1}, scale=1.5, factors=factors, about={}
    )
    x = torch.randn(3, 3, plain.height, plain.width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = plain.net(x)
        wanted = student.net(x)
        plain.net.visual = adapted_tower(adapter, plain.net.visual)
        got = plain.net(x)
    torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)  # factors are kept as float16
    assert (wanted - before).abs().max() > 0.02


def test_a_short_run_writes_an_adapter_that_names_what_it_is_for(adapted, asked, vit, bundle_folder):
    adapter, bundle = load_adapter(adapted / "adapter"), load_bundle(bundle_folder)
    assert adapter.clip == load_tower(str(vit)).id
    assert adapter.picture_id == bundle.picture_id
    assert adapter.rates == {rate: bundle.n_layers(rate) for rate in asked.rates}
    assert adapter.layers == set(adapter.rates.values())
    assert any(abs(b).max() > 0 for _, b in adapter.factors.values())  # it has learned something
    adapter.check_clip(adapter.clip)
    adapter.check_bundle(bundle)
    told = [json.loads(line) for line in (adapted / "held_out.jsonl").read_text().splitlines()]
    assert told[0]["progress"] == 0.0
    assert told[-1]["progress"] == 1.0
    assert {f"cosine_{rate}" for rate in asked.rates} < told[-1].keys()
    assert adapter.about["held_out"]["after"] == told[-1]


def test_the_same_seed_gives_the_same_adapter(adapted, asked, tmp_path):
    assert adapt(asked, tmp_path).digest == load_adapter(adapted / "adapter").digest


def test_an_interrupted_run_goes_on_where_it_was(adapted, asked, tmp_path):
    whole, first = Adapting(asked), Adapting(asked)
    for _ in range(2):
        whole.step()
        first.step()
    again = Adapting(asked)
    again.restore(first.state())
    for _ in range(2):
        assert again.step() == whole.step()
    with pytest.raises(AdapterError, match="another tower or rank"):
        Adapting(replace(asked, rank=3)).restore(first.state())
    again = shutil.copytree(adapted, tmp_path / "again")
    assert adapt(asked, again).digest == load_adapter(adapted / "adapter").digest  # finished: written again


def test_views_are_the_codecs_and_kept(asked, monkeypatch):
    first = Adapting(asked)
    views = first.views
    assert views.pictures(np.array([0, 7])).shape == (2, 224, 224, 3)
    assert set(views.layers) <= set(first.rates.values())
    np.testing.assert_allclose(np.linalg.norm(views.wanted, axis=1), 1, atol=1e-3)
    assert len(first.unseen) == 8 * len(first.rates)

    def not_again(*args, **kwargs):
        raise AssertionError("views were coded a second time")

    monkeypatch.setattr("export.content.SymbolContent.of", not_again)
    np.testing.assert_array_equal(Adapting(asked).views.wanted, views.wanted)


def test_stills_have_adapters_too(vit, tmp_path):
    """Their rates are pictures of their own, made by no encoder of ours."""
    settings = AdaptSettings("still", str(vit), ("low", "high"), steps=2, count=4, batch=2, rank=2)
    run = Adapting(settings)
    still, views = load_bundle("still"), run.unseen
    assert set(views.layers) == set(run.rates.values()) == {still.n_layers("low"), still.n_layers("high")}
    pictures = views.pictures(np.arange(len(views))).astype(int)
    low, high = (pictures[views.layers == layers] for layers in run.rates.values())
    assert np.abs(low - high).mean() > 1  # the same views, at two rates
    adapter = adapt(settings, tmp_path)
    assert adapter.rates == run.rates
    adapter.check_bundle(still)


def test_another_grain_gives_other_views_and_does_not_go_on_with_the_run(vit, tmp_path):
    """Model id and (no) weights are the same: the card alone tells."""
    grainy = make_tiny_still(tmp_path / "a", size=64)
    plain = shutil.copytree(grainy.path, tmp_path / "b")
    card = json.loads((plain / "card.json").read_text())
    card["cloud"]["synthesis"]["grain"] = [0.0, 0.0]
    (plain / "card.json").write_text(json.dumps(card))
    settings = AdaptSettings(str(grainy.path), str(vit), ("low",), steps=1, count=4, batch=2, rank=2)
    one, other = Adapting(settings), Adapting(replace(settings, bundle=str(plain)))
    index = np.arange(len(one.views))
    np.testing.assert_array_equal(one.views.wanted, other.views.wanted)  # the same photographs
    assert (one.views.pictures(index) != other.views.pictures(index)).any()
    with pytest.raises(CheckpointError, match=r"is of decoder without weights, synthesis .* give another --out"):
        other.restore(one.state())


def test_a_finished_run_is_not_written_again_under_another_name(adapted, asked, tmp_path):
    """Shapes are the same: without a word the adapter of one CLIP, or of other rates, would be given to another."""
    other = write_tiny_clip(tmp_path / "other", seed=4)
    with pytest.raises(CheckpointError, match=r"is of CLIP tiny-vit#.*, this run is of other#"):
        adapt(replace(asked, clip=str(other)), shutil.copytree(adapted, tmp_path / "run"))
    with pytest.raises(CheckpointError, match="is of rates "):
        adapt(replace(asked, rates=asked.rates[:1]), shutil.copytree(adapted, tmp_path / "again"))


def test_a_checkpoint_of_before_that_does_not_say_is_taken(asked):
    state = Adapting(asked).state()
    del state["made_for"]
    Adapting(asked).restore(state)


def test_a_bundle_of_vectors_and_an_unknown_rate_are_refused(asked, tmp_path, capsys):
    vectors = write_tiny_codec(tmp_path / "vectors", output="embedding")
    with pytest.raises(AdapterError, match="decodes into CLIP vectors"):
        Adapting(replace(asked, bundle=str(vectors.path), rates=()))
    with pytest.raises(SystemExit, match="has no rate 'huge'"):
        main(["adapt", "--bundle", asked.bundle, "--clip", asked.clip, "--rates", "huge", "--out", str(tmp_path)])


def spoil(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / CARD).unlink(), "cannot be read"),
        (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x" * 100), "is not the file that"),
        (lambda folder: (folder / CARD).write_text("{"), "not an adapter's card"),
        (lambda folder: spoil(folder, lambda card: card.update(format=2)), "format 2 is unknown"),
        (lambda folder: spoil(folder, lambda card: card.update(rates={"low": 0})), "wrong kind"),
        (lambda folder: spoil(folder, lambda card: card.update(clip="clip-lite")), "wrong kind"),
        (lambda folder: spoil(folder, lambda card: card["bundle"].pop("model_id")), "model_id"),
    ],
)
def test_a_damaged_adapter_is_refused_by_file(damage, says, adapted, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (adapted / "adapter").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(AdapterError, match=says) as caught:
        load_adapter(folder)
    assert str(folder) in str(caught.value)


def test_an_adapter_of_another_tower_does_not_merge(adapted):
    with pytest.raises(AdapterError, match="does not fit"):
        adapted_tower(load_adapter(adapted / "adapter"), load_tower("clip-lite").net.visual)
