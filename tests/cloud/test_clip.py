"""CLIP loading: one path for shipped, local and hub models, typed errors that name the fix, never random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cloud.errors import ClipUnavailable, DeviceUnavailable
from cloud.networks.clip import load_clip, pick_device
from cloud.networks.runtime import is_clip
from tests.cloud.tiny_clip import write_tiny_clip


def test_a_local_folder_loads_with_its_own_preprocessing(tiny_clip):
    assert (tiny_clip.image_height, tiny_clip.image_width) == (64, 64)
    assert tiny_clip.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert tiny_clip.embed_dim == 32
    assert is_clip(tiny_clip, tiny_clip.name)
    assert is_clip(tiny_clip, tiny_clip.id)
    assert not is_clip(tiny_clip, f"{tiny_clip.name}#0000")
    assert not is_clip(tiny_clip, "another")


def test_images_give_the_vectors_of_open_clips_own_preprocessing(tiny_clip, tiny_clip_dir):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip_dir}")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    view = np.asarray(Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC))
    with torch.inference_mode():
        want = model.eval().encode_image(preprocess(Image.fromarray(view))[None], normalize=True)
    got = tiny_clip.encode_images(torch.from_numpy(view.copy()).permute(2, 0, 1)[None].float() / 255)
    assert torch.nn.functional.cosine_similarity(want, got).item() > 0.9999


def test_texts_give_open_clips_vectors_though_padding_is_skipped(tiny_clip):
    texts = ["a", "a photo of a big cat.", "word " * 100]
    with torch.inference_mode():
        want = tiny_clip.model.encode_text(tiny_clip.tokenize(texts), normalize=True).numpy()
    got = tiny_clip.encode_texts(texts)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert tiny_clip.encode_texts([]).shape == (0, 32)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (224, 224), (100, 64), (33, 90)])
def test_fit_gives_the_input_size_in_every_resize_mode(tiny_clip, mode, size):
    from dataclasses import replace

    out = replace(tiny_clip, resize_mode=mode).fit(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, 64, 64)
    assert out.min() >= 0
    assert out.max() <= 1


def test_the_fingerprint_follows_the_weights_not_the_folder(tiny_clip, tiny_clip_dir, tmp_path):
    same = load_clip(str(shutil.copytree(tiny_clip_dir, tmp_path / tiny_clip_dir.name)))
    other = load_clip(str(write_tiny_clip(tmp_path / "other" / tiny_clip_dir.name, seed=1)))
    assert same.id == tiny_clip.id
    assert other.name == tiny_clip.name
    assert other.id != tiny_clip.id


def test_a_named_architecture_takes_a_local_checkpoint(tmp_path):
    import open_clip
    from safetensors.torch import save_file

    from tests.cloud.tiny_clip import MODEL_CFG

    (tmp_path / "tiny-test-arch.json").write_text(json.dumps(MODEL_CFG))
    open_clip.add_model_config(tmp_path)
    weights = {k: v.contiguous() for k, v in open_clip.CLIP(**json.loads(json.dumps(MODEL_CFG))).state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    clip = load_clip(f"tiny-test-arch:{tmp_path / 'weights.safetensors'}")
    np.testing.assert_array_equal(clip.model.visual.proj.numpy(), weights["visual.proj"].numpy())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ViT-B-3:openai", "ViT-B-32"),
        ("ViT-B-32:nonesuch", "laion2b_s34b_b79k"),
        ("ViT-B-32:/nowhere/weights.pt", "does not exist"),
        ("/nowhere/at/all", "expected `clip-lite`"),
        ("nonsense", "expected `clip-lite`"),
    ],
)
def test_wrong_names_are_errors_that_say_what_is_right(spec, says):
    with pytest.raises(ClipUnavailable, match=says):
        load_clip(spec)


def test_an_unreachable_hub_names_the_offline_ways(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ClipUnavailable, match=r"hub .*--clip NAME:/path/to/checkpoint"):
        load_clip("ViT-B-32:openai")


def test_damaged_or_missing_weights_are_errors_never_random_weights(tiny_clip_dir, tmp_path):
    for name in ("gone", "cut", "empty"):
        shutil.copytree(tiny_clip_dir, tmp_path / name)
    (tmp_path / "gone" / "open_clip_model.safetensors").unlink()
    weights = tmp_path / "cut" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (tmp_path / "empty" / "open_clip_config.json").unlink()
    for name in ("gone", "cut"):
        with pytest.raises(ClipUnavailable, match="missing or damaged"):
            load_clip(str(tmp_path / name))
    with pytest.raises(ClipUnavailable, match=r"open_clip_config\.json"):
        load_clip(str(tmp_path / "empty"))
    with pytest.raises(ClipUnavailable, match="NAME:"):
        load_clip(str(tiny_clip_dir / "open_clip_model.safetensors"))


def test_devices_asked_for_by_name_are_never_replaced():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(DeviceUnavailable, match="auto, cpu or cuda"):
        pick_device("tpu")
    if torch.cuda.is_available():
        assert pick_device("auto") == pick_device("cuda") == "cuda"
    else:
        assert pick_device("auto") == "cpu"
        with pytest.raises(DeviceUnavailable, match="--device cpu"):
            pick_device("cuda")
